"""Mathematics of linear neuron explanations: arrays in, arrays out; no Ray, no files, no clocks."""

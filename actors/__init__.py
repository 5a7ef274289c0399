"""Models: what loads a network once and maps batches of images through it."""

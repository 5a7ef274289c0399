"""The embedded default: pictures that are drawn, and two models that know them."""

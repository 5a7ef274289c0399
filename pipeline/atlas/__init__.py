"""The atlas: a static folder that a person opens in a browser to read a run."""

"""The file formats of a trained network: how each is written, checked and run."""

"""Score models in bits per byte."""

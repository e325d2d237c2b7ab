"""Define the float model, its parts and its loss."""

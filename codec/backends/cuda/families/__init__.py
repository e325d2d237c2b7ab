"""Run the models of the open families on a GPU."""

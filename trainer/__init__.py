"""Everything between text and a checkpoint: data, the float model, optimizers, the training loop."""

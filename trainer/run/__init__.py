"""Run the training: loop, steps, state, log."""

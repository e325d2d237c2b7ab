"""Run a training: loop, state, log."""

"""Fit after training what a pack holds beside the weights."""

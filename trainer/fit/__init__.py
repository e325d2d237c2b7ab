"""Fit after training what a pack holds beside the integers of its weights."""

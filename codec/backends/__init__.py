"""Compute the integers of the reference fast, on processors and GPUs."""

"""Arithmetic that every machine repeats to the bit."""

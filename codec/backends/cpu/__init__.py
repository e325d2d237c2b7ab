"""Compute the reference's integers in compiled loops on a processor."""

"""Compute the reference's integers fast."""

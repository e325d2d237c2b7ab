"""Measure general compressors, the baselines of an archive."""

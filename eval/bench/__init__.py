"""Measure general compressors beside an archive."""

"""Measure weight codecs against each other."""

"""Measure weight codecs against each other: bytes at equal distortion, distortion at equal bytes."""

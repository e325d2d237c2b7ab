"""Prove a score by coding text and decoding it again."""

"""Audit other people's claims."""

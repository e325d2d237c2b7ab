"""Compute the reference's integers in Triton kernels on a GPU."""

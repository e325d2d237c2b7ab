"""Triton kernels of exact inference on a GPU."""

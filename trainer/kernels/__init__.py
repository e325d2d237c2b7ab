"""Fuse the trainer's operations in Triton kernels."""

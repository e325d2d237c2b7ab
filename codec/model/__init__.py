"""Describe a model: configuration, tensors, tokenizer, checkpoints on disk."""

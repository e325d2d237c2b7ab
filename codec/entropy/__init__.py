"""Code integers as bits: range coder, adaptive probabilities, logistic mixing, token frequencies."""

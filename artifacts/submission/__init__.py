"""Make, check and evaluate submissions."""

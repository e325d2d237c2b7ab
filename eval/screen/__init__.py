"""Screen training techniques against each other."""

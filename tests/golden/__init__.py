"""Files of every kind that underpar writes, which it reads for good, and what makes them."""

"""Share documents out to a Ray cluster, and code them in batches of Ray's data sets."""

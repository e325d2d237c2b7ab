"""Code blocks of files as streams in which nothing starts cold: the model mixed with context mixing."""

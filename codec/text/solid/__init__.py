"""Code blocks of files as streams in which nothing starts cold: a language model's predictions and context mixing."""

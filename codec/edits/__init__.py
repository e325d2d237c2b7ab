"""Code what a tokenizer loses, behind the tokens of a document."""

"""Code what a tokenizer loses: edits that turn a document's canonical text into its original text."""

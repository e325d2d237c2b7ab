"""Share packs and run folders: in a local store, or on the Hugging Face hub."""

"""Share packs and run folders."""

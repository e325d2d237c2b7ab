"""Read and write packs (`.pack`): a compressed model in one file."""

"""Read and write archives (`.upz`): records, index, files on disk."""

"""Read and write archives (`.upz`): records, index, files on disk."""

SUFFIX = ".upz"
"""The end of the names of archives."""

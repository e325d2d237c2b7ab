"""Turn text into shards and batches."""

"""Turn documents into coded records and back, on one device or many."""

"""What is kept and shared: the pack store and the small packs that ship."""

"""The networks of the open families in fixed point."""

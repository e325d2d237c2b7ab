"""What is kept and shared: the pack store and the small packs that ship.

>>> import artifacts
>>> artifacts.open("small").config.vocab_size
2048
"""

from artifacts.store import find, open, shipped

__all__ = ["find", "open", "shipped"]

"""Models to keep and share: models by name, the ledger, submissions, and the small packs that ship.

>>> import artifacts
>>> artifacts.open("small").config.vocab_size
2048
"""

from artifacts.share.packs import find, open, shipped
from artifacts.share.store import Store, default_store

__all__ = ["Store", "default_store", "find", "open", "shipped"]

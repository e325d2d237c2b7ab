"""Define the context policy of an archive: the window, and what the coder learns from a document on the way.

The decoder learns the same, token by token. Each document is still decodable without the others.
"""

from dataclasses import dataclass
from enum import StrEnum


class Adaptation(StrEnum):
    """The ways to learn from the tokens of a document while they are coded."""

    NONE = "none"
    RECALL = "recall"  # `codec.exact.recall`, with the tables of the pack


@dataclass(frozen=True)
class Policy:
    """The rules by which a document's tokens are predicted.

    Attributes:
        window: each token sees the last `window` tokens, itself included.
        adaptation: what is learned from tokens on the way.
    """

    window: int
    adaptation: Adaptation = Adaptation.NONE

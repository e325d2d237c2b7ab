"""What an archive may learn from a document while it codes it; the decoder repeats it, token by token."""

from dataclasses import dataclass
from enum import StrEnum


class Adaptation(StrEnum):
    """Each document is still decodable without the others."""

    NONE = "none"
    RECALL = "recall"  # `codec.exact.recall`, with the tables of the pack


@dataclass(frozen=True)
class Policy:
    """What a document's tokens are predicted from.

    Each token sees the last `window` tokens, itself included. `adaptation` is what is learned from tokens on the way.
    """

    window: int
    adaptation: Adaptation = Adaptation.NONE

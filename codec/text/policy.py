"""What an archive may learn from a document while it codes it; the decoder repeats it, token by token."""

from enum import StrEnum


class Adaptation(StrEnum):
    """Each document is still decodable without the others."""

    NONE = "none"
    RECALL = "recall"  # `codec.exact.recall`, with the tables of the pack

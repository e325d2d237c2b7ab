"""The sample that ships with the package: a few megabytes of web text and the challenge's tokenizer of 1,024 pieces.

`sample/README.md` names the sources and licences. The sample is enough to see every command work, and too little text
to train a good model.
"""

from collections.abc import Iterator
from importlib.resources import as_file, files

from codec.model.tokenizer import Tokenizer
from trainer.data.documents import read_documents


def train_documents() -> Iterator[bytes]:
    """Yield the 1,938 documents for training: 5,092,399 bytes, with newlines in the last 619 documents."""
    return _documents("train.jsonl.xz")


def val_documents() -> Iterator[bytes]:
    """Yield the first 120 documents of the challenge's validation set, 349,287 bytes in its normalised form."""
    return _documents("val.jsonl.xz")


def sp1024() -> Tokenizer:
    """Return the challenge's SentencePiece model of 1,024 pieces, which normalises text."""
    return Tokenizer((files("trainer") / "sample" / "fineweb_1024_bpe.model").read_bytes())


def _documents(name: str) -> Iterator[bytes]:
    with as_file(files("trainer") / "sample" / name) as path:
        yield from read_documents(path)

"""The sample that ships with the package: a few megabytes of web text and the challenge's tokenizer of 1,024 pieces.

`sample/README.md` names the sources and licences. The sample is enough to see every command work, and too little text
to train a good model. A wheel for coding alone leaves the sample out (docs/development.md).
"""

from collections.abc import Iterator
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable

from codec.errors import CodecError
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
    return Tokenizer(_file("fineweb_1024_bpe.model").read_bytes())


def _documents(name: str) -> Iterator[bytes]:
    with as_file(_file(name)) as path:
        yield from read_documents(path)


def _file(name: str) -> Traversable:
    """Find a file of the sample. Raises CodecError where underpar was installed without the sample."""
    found = files("trainer") / "sample" / name
    if not found.is_file():
        raise CodecError(
            f"the sample's {name} is not there: this underpar was installed from a wheel without the sample; name text "
            "and a tokenizer of your own, or install the whole wheel"
        )
    return found

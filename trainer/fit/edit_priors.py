"""Priors of `codec.edits.model`, measured on text: the probabilities of edits before anything of a document is known.

`python -m trainer.fit.edit_priors TEXT...` reads documents that a normalising tokenizer changes (files of `underpar
data prepare`) and writes `codec/edits/priors.py`. A first pass counts how often each decision is 1 in each context. Two
more passes start every document with these probabilities, as a decoder does, and train the weights of the mixer.
Archives depend on that file, so a new file makes a new archive format.

The file that ships was made from FineWeb with its line breaks (EsteveSegura/TextFixer, NoeFlandre/fineweb-legal),
OpenWebText (karpathy/nanoGPT) and C4 (Diffusion-bachelor/diffusion-data-constraint-rare-events), 24 MB in this order,
without a document that shares 13 words with the 200 raw documents of openai/parameter-golf pull request 1578, in four
minutes of CPU time.
"""

import argparse
import base64
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zstandard

from codec.edits import coder
from codec.edits import priors as edit_priors
from codec.edits.model import EditModel, make_model, quantized, untrained
from codec.entropy import mixing, range_coder
from codec.entropy.adaptive_bit import PRECISION, SHARE_BITS
from trainer.data.documents import read_documents
from trainer.data.sample import sp1024

_PASSES = 2
_RATE = 6  # of the weights at first, falling linearly to 1
_SEED = 0
_WIDTH = 100  # characters of a line

Pair = tuple[bytes, bytes]


def changed(documents: Iterable[bytes]) -> list[Pair]:
    """Return (canonical, original) of the documents that the normalising tokenizer changes, in random order."""
    tokenizer = sp1024()
    pairs = [(tokenizer.decode(tokenizer.encode(document).astype(np.int64)), document) for document in documents]
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    order = np.random.default_rng(_SEED).permutation(len(pairs))
    return [pairs[n] for n in order]


def train(pairs: list[Pair]) -> bytes:
    """Train priors and return them in the form of `codec.edits.priors`."""
    stretched, mixer = untrained()
    model = make_model(stretched, mixer, certainty=2, rate=0, most=1023)
    for pair in pairs:
        model.histories[:] = 0
        run(pair, model)
    stretched = mixing.tables().stretch[np.maximum(model.probabilities >> (PRECISION - SHARE_BITS), 1)]
    for n in range(_PASSES * len(pairs)):
        rate = max(1, round(_RATE * (1 - n / (_PASSES * len(pairs)))))
        run(pairs[n % len(pairs)], make_model(stretched, mixer, rate=rate))
    return quantized(stretched, *mixer)


def run(pair: Pair, model: EditModel) -> float:
    """Encode the edits of a document, which adapts the model; return their bits."""
    canonical, original = (np.frombuffer(part, np.uint8) for part in pair)
    edits = coder.align(canonical, original)
    state, out = range_coder.new_encoder(), np.zeros(coder.edits_capacity(canonical, edits), np.uint8)
    coder.put_edits(state, out, canonical, original, edits, True, model)
    return range_coder.written_bits(state)


def main() -> None:
    """Train the priors on the files of the command line and write `codec/edits/priors.py`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", type=Path)
    documents = [document for path in parser.parse_args().text for document in read_documents(path)]
    coded = base64.b85encode(zstandard.ZstdCompressor(level=19).compress(train(changed(documents)))).decode()
    lines = "\n".join(coded[at : at + _WIDTH] for at in range(0, len(coded), _WIDTH))
    head = '"""Priors of `codec.edits.model`, made by `trainer.fit.edit_priors`."""'
    Path(edit_priors.__file__).write_text(f'{head}\n\nPRIORS = r"""\n{lines}\n"""\n')


if __name__ == "__main__":
    main()

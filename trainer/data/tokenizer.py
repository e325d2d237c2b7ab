"""Train a SentencePiece tokenizer that loses nothing: `decode(encode(document)) == document` for valid UTF-8.

The challenge's models normalise: they fold characters, and turn newlines and runs of spaces into one space. The models
of this module keep all of them. The one exception is U+2581, which SentencePiece uses to write a space and therefore
reads as a space. Capitals may be folded, too (`codec.model.capitals`), which loses nothing either.
"""

from collections.abc import Iterable, Iterator
from io import BytesIO

import sentencepiece

from codec.console import Stopped
from codec.errors import CodecError, FormatError
from codec.model.capitals import MARKS, fold
from codec.model.tokenizer import BOS, FOLDED, SPACE, Tokenizer

MAX_TRAINING_BYTES = 500_000_000
"""Bytes of text: SentencePiece holds several copies of the text in memory."""

SMALLEST_VOCABULARY = 4 + 256
"""The special tokens and the single bytes."""

COVERAGE = 0.999
"""Share of the text's characters that get their own tokens: the challenge's choice. The rest are coded as bytes."""


def train_tokenizer(documents: Iterable[bytes], vocab_size: int, folds: bool = False) -> Tokenizer:
    """Train a byte-pair encoding of at most `vocab_size` tokens; fewer if the text has no more pairs to merge.

    The same documents give the same model. Invalid UTF-8 is read as U+FFFD. Documents after the first 500 MB of text
    are not used.

    Args:
        documents: the text.
        vocab_size: of the model.
        folds: tokens stand for folded text: a word has the same token with a capital and without.

    Raises:
        FormatError: there is no text.
        CodecError: `vocab_size` is not in 260..65536, or too small for the text's characters.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= 1 << 16:
        raise CodecError(f"a vocabulary of {vocab_size:,}; choose one from {SMALLEST_VOCABULARY} to 65,536")
    sentences = _Sentences(map(fold, documents) if folds else documents)
    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            character_coverage=COVERAGE,
            required_chars=SPACE + (MARKS.decode() if folds else ""),  # a text without spaces, too
            max_sentence_length=1 << 30,  # a document counts as a sentence, and longer sentences would be dropped
            pad_id=0,
            bos_id=BOS,
            eos_id=2,
            unk_id=3,
            num_threads=1,  # the number is written into the model
            minloglevel=2,
        )
    except RuntimeError as error:
        if sentences.error is not None:
            raise sentences.error from None
        if not sentences.bytes:
            raise FormatError("no text in the input; pass files with documents that are not empty") from error
        raise CodecError(f"no vocabulary of {vocab_size:,} from this text ({error}); choose a larger one") from error
    tokenizer = Tokenizer(model.getvalue() + (FOLDED if folds else b""))
    if tokenizer.lossy:
        raise CodecError("the tokenizer that came of this text loses spaces or line breaks; pass more text")
    return tokenizer


class _Sentences:
    """The documents as strings, up to `MAX_TRAINING_BYTES`.

    Attributes:
        bytes: bytes of text yielded so far.
        error: the error that the documents raised, which SentencePiece turns into a RuntimeError.
    """

    def __init__(self, documents: Iterable[bytes]):
        self._documents = documents
        self.bytes = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for document in self._documents:
                self.bytes += len(document)
                if self.bytes > MAX_TRAINING_BYTES:
                    return
                yield document.decode("utf-8", errors="replace")
        except (Exception, KeyboardInterrupt, Stopped) as error:
            self.error = error
            raise

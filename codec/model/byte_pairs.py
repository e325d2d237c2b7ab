"""Byte-level BPE tokenizers: text to token ids, token ids to the exact bytes they stand for.

A token has fixed bytes, and a document's canonical bytes are their concatenation, as in `codec.model.tokenizer`.
Hugging Face's `tokenizers` merges; its tokenizer is built anew from the vocabulary, the merges and a split that this
module knows by name, so that nothing of a file is run. What is no UTF-8 becomes single bytes. No text becomes a control
token, whatever it says, and no text is normalised.

A pack keeps a tokenizer as canonical JSON: the words in the order of their ids, control tokens apart, and of each merge
the word that it makes and the length of its first part.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from codec.errors import FormatError
from codec.model.tokenizer import Pieces
from codec.model.tokenizer import Tokenizer as SentencePieces
from codec.model.transformer import MAX_VOCABULARY

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"llama3": _WORDS % r"\p{N}{1,3}", "qwen2": _WORDS % r"\p{N}"}

SPLITS = ("gpt2", "smollm", *PATTERNS)
"""Ways to split text before words are merged: GPT-2's pattern, the same behind single digits, and one pattern each."""

_LONGEST = 1 << 10  # characters of a word
_PIECE = 1 << 20  # characters that are tokenized at once: what `tokenizers` keeps of a token takes 100 bytes and more
_SAMPLE = "One\n\ntwo\t three  four… ".encode()
_INVALID = re.compile("[\udc80-\udcff]+")


def _alphabet() -> dict[str, int]:
    """Return the byte of each character of byte-level words, as GPT-2 has them: printable ones are themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(rest)}


_BYTES = _alphabet()


class BytePairs:
    """A byte-level BPE and the bytes its tokens stand for.

    Args:
        model: canonical JSON as `serialize` makes it.

    Raises:
        FormatError: anything else.
    """

    folds = False

    def __init__(self, model: bytes):
        self.model = bytes(model)
        try:
            values = json.loads(model)
            self.words: list[str | None] = values["words"]
            self.controls: dict[int, str] = dict(values["controls"])
            self.made, self.first = values["merges"]
            self.split_name, self.whole = values["split"], values["whole"]
            self.begin, self.end = values["begin"], values["end"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"tokenizer: {len(model)} bytes are no byte-level BPE ({error!r})") from error
        self._check()
        self._tokenizer = self._build()
        self._single = np.array([self._ids.get(c, -1) for c in sorted(_BYTES, key=_BYTES.__getitem__)], np.int64)

    def _check(self) -> None:
        words, size = self.words, len(self.words) if isinstance(self.words, list) else 0
        good = 4 <= size <= MAX_VOCABULARY and type(self.whole) is bool and self.split_name in SPLITS
        good = good and all(
            word is None or (isinstance(word, str) and 0 < len(word) <= _LONGEST and _BYTES.keys() >= set(word))
            for word in words
        )
        good = good and all(type(n) is int and 0 <= n < size and words[n] is None for n in self.controls)
        good = good and all(isinstance(name, str) and len(name) <= _LONGEST for name in self.controls.values())
        good = good and all(type(n) is int and 0 <= n < size and words[n] is None for n in (self.begin, self.end))
        lists = isinstance(self.made, list) and isinstance(self.first, list)
        good = good and lists and len(self.made) == len(self.first) <= size
        good = good and all(type(n) is int for n in (*self.made, *self.first))
        if not good:
            raise FormatError("tokenizer: its words, control tokens, merges or split are not what underpar writes")

    def _build(self) -> Tokenizer:
        self._ids = {word: n for n, word in enumerate(self.words) if word is not None}
        made = np.cumsum(self.made).tolist()
        if any(not 0 <= n < len(self.words) for n in made):
            raise FormatError("tokenizer: a merge makes no word of it")
        words = [self.words[n] or "" for n in made]
        self.merges = [(word[:k], word[k:]) for word, k in zip(words, self.first, strict=True)]
        for pair in self.merges:
            if not (pair[0] in self._ids and pair[1] in self._ids):
                raise FormatError(f"tokenizer: a merge joins {pair}, which are no words of it")
        built = Tokenizer(models.BPE(vocab=self._ids, merges=self.merges, ignore_merges=self.whole))
        digits, bare = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=False)
        steps: dict[str, list[pre_tokenizers.PreTokenizer]] = {
            "gpt2": [pre_tokenizers.ByteLevel(False)],
            "smollm": [digits, pre_tokenizers.ByteLevel(False)],
        }
        for name, pattern in PATTERNS.items():
            steps[name] = [pre_tokenizers.Split(Regex(pattern), "isolated"), bare]
        built.pre_tokenizer = pre_tokenizers.Sequence(steps[self.split_name])
        return built

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the serialized model in hex."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def lossy(self) -> bool:
        """Tell whether decoding restores less than what was encoded."""
        return self.decode(self.encode(_SAMPLE)) != _SAMPLE

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each token id; empty for control tokens."""
        return [b"" if word is None else bytes(_BYTES[c] for c in word) for word in self.words]

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces.of(self.token_bytes)

    @cached_property
    def token_lengths(self) -> NDArray[np.int64]:
        """Return the number of bytes of text that each token id stands for, int64 [V]."""
        return self._pieces.lengths

    def encode(self, document: bytes) -> NDArray[np.uint32]:
        """Return the token ids [T] of a document, without the tokens that begin and end a document.

        Bytes that have no token of their own are left out.
        """
        text, found, at = document.decode("utf-8", "surrogateescape"), [], 0
        for match in (*_INVALID.finditer(text), None):
            found += self._merged(text[at : match.start() if match else len(text)])
            if match:
                at = match.end()
                singles = self._single[[ord(c) - 0xDC00 for c in match[0]]]
                found += singles[singles >= 0].tolist()
        return np.array(found, np.uint32)

    def _merged(self, text: str) -> list[int]:
        """Tokenize text piece by piece; a piece ends behind a line where possible. Return token ids."""
        found: list[int] = []
        while text:
            cut = len(text) if len(text) <= _PIECE else text.rfind("\n", 0, _PIECE) + 1 or _PIECE
            pieces = self._tokenizer.encode_batch_fast([text[:cut]], add_special_tokens=False)  # `encode` keeps the GIL
            found += pieces[0].ids
            text = text[cut:]
        return found

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """Return the canonical bytes of token ids [T]. Raises FormatError for an id beyond the vocabulary."""
        return self._pieces.join(tokens)

    def challenge_bytes(self, before: NDArray[np.integer], targets: NDArray[np.integer]) -> int:
        """Return the bytes of targets [...]: no token depends on the one before."""
        return int(self.token_lengths[targets].sum())

    def split(self, tokens: NDArray[np.integer]) -> list[bytes]:
        """Return the bytes of each of token ids [T]; errors as `decode`."""
        self.decode(tokens)
        return [self.token_bytes[t] for t in tokens.tolist()]


AnyTokenizer = SentencePieces | BytePairs


def open_tokenizer(model: bytes) -> AnyTokenizer:
    """Return the tokenizer of a pack or checkpoint: byte-level BPE as canonical JSON, else a SentencePiece model."""
    return BytePairs(model) if model[:1] == b"{" else SentencePieces(model)


def serialize(
    words: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    controls: Mapping[int, str],
    split: str,
    whole: bool,
    begin: int,
    end: int,
) -> bytes:
    """Return the canonical JSON of a tokenizer; ids in `controls` are no words."""
    ids = [*words.values(), *controls]
    if not all(type(n) is int and 0 <= n < MAX_VOCABULARY for n in ids):
        raise FormatError(f"tokenizer: token ids up to {max(ids, default=0)!r}, expected less than {MAX_VOCABULARY}")
    table: list[str | None] = [None] * (1 + max([*ids, begin, end]))
    for word, n in words.items():
        table[n] = None if n in controls else word
    made, first = [], []
    for left, right in merges:
        if (left + right) not in words:
            raise FormatError(f"tokenizer: the merge of {left[:40]!r} and {right[:40]!r} makes no word of it")
        made.append(words[left + right])
        first.append(len(left))
    values = {
        "begin": begin,
        "end": end,
        "split": split,
        "whole": whole,
        "controls": sorted(controls.items()),
        "words": table,
        "merges": [np.diff(made, prepend=0).tolist(), first],
    }
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def control_token(controls: Mapping[int, str], name: str, otherwise: int) -> int:
    """Return the id of a control token by its name, `otherwise` where there is none."""
    return next((n for n, found in controls.items() if found == name), otherwise)

"""Read and write `tokenizer.json` of Hugging Face: the byte-level BPEs of it."""

import json
from typing import Any

from codec.errors import FormatError
from codec.model.byte_pairs import PATTERNS, BytePairs, control_token, serialize
from codec.model.transformer import MAX_VOCABULARY

SEPARATOR = "<|endoftext|>"
"""The token between documents in the training of GPT-2, SmolLM and Qwen, whatever their chats begin and end with."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

_KNOWN = {
    "type": "BPE",
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "dropout": None,
}
"""Keys of a model, and the value that changes nothing."""


def _splits() -> dict[str, list[dict[str, Any]]]:
    """Return the pre-tokenizers of each split."""
    found = {"gpt2": [_BYTE_LEVEL], "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]}
    for name, pattern in PATTERNS.items():
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        found[name] = [split, {**_BYTE_LEVEL, "use_regex": False}]
    return found


def from_tokenizer_json(values: dict[str, Any], begin: int, end: int) -> BytePairs:
    """Make the tokenizer of a `tokenizer.json`; normalizers, templates and decoders are left out.

    Args:
        values: the file's JSON.
        begin: the token before a document that a config names; SEPARATOR is taken where the tokenizer has it.
        end: the same, behind a document.

    Raises:
        FormatError: no byte-level BPE, or a part that underpar does not know, by key and value.
    """
    try:
        return _from(values, begin, end)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"tokenizer.json: not what `tokenizers` writes ({error!r})") from error


def _from(values: dict[str, Any], begin: int, end: int) -> BytePairs:
    model = values["model"]
    for key, known in _KNOWN.items():
        if model.get(key) not in (known, None):
            raise FormatError(f"tokenizer.json: model.{key} is {model.get(key)!r}; underpar knows {known!r}")
    vocabulary, merges = model["vocab"], model["merges"]
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_VOCABULARY or len(merges) > MAX_VOCABULARY:
        raise FormatError(f"tokenizer.json: over {MAX_VOCABULARY} words or merges, or none")
    controls = {token["id"]: token["content"] for token in values.get("added_tokens") or ()}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise FormatError("tokenizer.json: a merge is no pair of words")
    names = {"begin": control_token(controls, SEPARATOR, begin), "end": control_token(controls, SEPARATOR, end)}
    whole = bool(model.get("ignore_merges") or False)
    return BytePairs(serialize(vocabulary, pairs, controls, _split_of(values["pre_tokenizer"]), whole, **names))


def _split_of(pre_tokenizer: dict[str, Any]) -> str:
    """Return the name of the split. Raises FormatError for one that underpar does not know."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    told = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for step in told:
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False  # a space before a text is no part of it
            step.setdefault("use_regex", True)
    for name, known in _splits().items():
        if told == [{key: value for key, value in step.items() if key != "trim_offsets"} for step in known]:
            return name
    raise FormatError(
        f"tokenizer.json: pre_tokenizer is {json.dumps(pre_tokenizer)[:300]}; underpar knows those of "
        f"{', '.join(_splits())}"
    )


def to_tokenizer_json(tokenizer: BytePairs) -> dict[str, Any]:
    """Return what a `tokenizer.json` says of a tokenizer."""
    vocabulary = {word: n for n, word in enumerate(tokenizer.words) if word is not None}
    added = [
        {"id": n, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for n, name in sorted(tokenizer.controls.items())
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _splits()[tokenizer.split_name]},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.whole,
            "vocab": {**vocabulary, **{name: n for n, name in tokenizer.controls.items()}},
            "merges": [list(pair) for pair in tokenizer.merges],
        },
    }

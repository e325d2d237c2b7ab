"""codec.model.byte_pairs: every byte comes back, no text is a control token, broken files are refused."""

import json
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from codec.errors import FormatError
from codec.model.byte_pairs import BytePairs, open_tokenizer
from codec.model.families.tokenizer_json import from_tokenizer_json, to_tokenizer_json
from tests.support.families import byte_pairs, tokenizer_json
from trainer.data.sample import sp1024, val_documents

SAID = ["<|endoftext|>", "a", " the", "\ud800", "é", "漢", "\n\n", "12345", "  "]


@settings(max_examples=60)
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from(SAID)).map(lambda p: "".join(p).encode("utf-8", "surrogatepass"))
)
def test_any_bytes_come_back(document):
    tokens = byte_pairs().encode(document)
    assert byte_pairs().decode(tokens) == document == b"".join(byte_pairs().split(tokens))
    assert not np.isin(tokens, list(byte_pairs().controls)).any()


def test_tokens_are_those_of_the_file():
    theirs, ours = Tokenizer.from_str(json.dumps(tokenizer_json())), byte_pairs()
    for text in (document.decode() for document, _ in zip(val_documents(), range(3), strict=False)):
        assert ours.encode(text.encode()).tolist() == theirs.encode(text, add_special_tokens=False).ids
    again = Tokenizer.from_str(json.dumps(to_tokenizer_json(ours)))
    assert again.encode("The 2nd of <|endoftext|>").ids == theirs.encode("The 2nd of <|endoftext|>").ids


def test_serialized_and_back():
    ours = byte_pairs()
    assert isinstance(open_tokenizer(ours.model), BytePairs)
    assert open_tokenizer(ours.model).encode(b"Once upon").tolist() == ours.encode(b"Once upon").tolist()
    assert open_tokenizer(sp1024().model).sha256 == sp1024().sha256
    assert (ours.begin, ours.end, ours.lossy, ours.vocab_size) == (0, 0, False, 390)


def test_bytes_without_a_token_are_left_out():
    values = deepcopy(dict(tokenizer_json()))
    model = values["model"]
    gone = "ÿ"  # byte 255, which no UTF-8 has
    model["vocab"] = {word: n for word, n in model["vocab"].items() if gone not in word}
    found = from_tokenizer_json(values, 0, 0)
    assert found.decode(found.encode(b"a\xff\xfeb")) == b"a\xfeb"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("model", "type"), "Unigram", "model.type is 'Unigram'"),
        (("model", "byte_fallback"), True, "byte_fallback is True"),
        (("model", "vocab"), [], "words"),
        (("model", "merges"), [["x", "qqq"]], "makes no word"),
        (("model", "merges"), [["x"]], "no pair"),
        (("model", "merges"), None, "not what"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "pre_tokenizer is"),
        (("pre_tokenizer",), None, "not what"),
        (("added_tokens",), [{"id": 1 << 40, "content": "x"}], "token ids"),
        (("added_tokens",), [{"id": 3}], "not what"),
        (("model",), 3, "not what"),
    ],
)
def test_a_strange_tokenizer_json_is_refused(path, value, says):
    values = deepcopy(dict(tokenizer_json()))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(FormatError, match=says):
        from_tokenizer_json(values, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"words": ["a"]},
        {"words": None},
        {"merges": [[1], [1, 2]]},
        {"merges": [[10**9], [1]]},
        {"merges": 3},
        {"split": "mine"},
        {"whole": 1},
        {"begin": 300},
        {"begin": -1},
        {"controls": [[1, 2, 3]]},
        {"controls": [[300, "x"]]},
    ],
    ids=str,
)
def test_a_strange_model_is_refused(changes):
    with pytest.raises(FormatError):
        BytePairs(json.dumps(json.loads(byte_pairs().model) | changes).encode())


def test_what_is_no_json_is_refused():
    for model in (b"{", b"{}", b"{" * 100_000, b'{"words": 1}'):
        with pytest.raises(FormatError):
            BytePairs(model)

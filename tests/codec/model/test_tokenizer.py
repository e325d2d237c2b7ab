"""Tokenizers: the challenge's (codec.model.tokenizer) and the lossless ones that are trained here
(trainer.data.tokenizer).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

import codec
from codec.errors import CodecError, FormatError
from codec.model.capitals import CAPITAL, MARKS, fold
from codec.model.tokenizer import BOS, Tokenizer
from trainer.data.sample import sp1024, train_documents, val_documents
from trainer.data.tokenizer import train_tokenizer
from underpar.commands import app

VALID_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))


@pytest.fixture(scope="module")
def challenge() -> Tokenizer:
    return sp1024()


@pytest.fixture(scope="module")
def lossless() -> Tokenizer:
    return train_tokenizer(list(train_documents())[-300:], 600)


@pytest.fixture(scope="module")
def folding() -> Tokenizer:
    return train_tokenizer(list(train_documents())[-300:], 600, folds=True)


def test_token_bytes_agree_with_sentencepiece(challenge: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(challenge.model)
    for document in list(val_documents())[:20]:
        tokens = challenge.encode(document)
        assert tokens.dtype == np.uint16
        assert challenge.decode(tokens) == processor.DecodeIds(tokens.tolist()).encode() == document


def test_challenge_tokenizer_normalises(challenge: Tokenizer) -> None:
    assert challenge.decode(challenge.encode("a\n  b ﬁ".encode())) == b"a b fi"


def test_challenge_tables(challenge: Tokenizer) -> None:
    base, space, boundary = challenge.challenge_tables()
    assert base.shape == space.shape == boundary.shape == (1024,)
    assert np.flatnonzero(boundary).tolist() == [0, 1, 2, 3]
    assert (base + space)[4:].tolist() == [len(piece) for piece in challenge.token_bytes[4:]]
    for document in list(val_documents())[:20]:
        tokens = np.append(BOS, challenge.encode(document)).astype(np.int64)
        counted = base[tokens[1:]] + (space[tokens[1:]] & ~boundary[tokens[:-1]])
        assert counted.sum() == len(document)


@given(VALID_TEXT)
@example("\n\n \t\t  \r\n x\n")
@example("")
@example(" ")
@example("\0a\0\0")
@example("<s></s><unk><pad><0x41> ▅ 123 ﬁ é e\u0301 \ufeff\u200b\u3000 日本 🏳️‍🌈")
def test_trained_tokenizer_loses_nothing(lossless: Tokenizer, text: str) -> None:
    document = text.encode()
    assert lossless.decode(lossless.encode(document)) == document


@given(VALID_TEXT)
@example("The NASA iPod\n\n By \x10\x11A\x12 ÀB")
@example("\x10")
@example("A")
def test_folding_loses_nothing_either(folding: Tokenizer, text: str) -> None:
    document = text.encode()
    tokens = folding.encode(document)
    assert folding.decode(tokens) == document
    assert folding.token_lengths[tokens].sum() == len(document)
    assert b"".join(folding.split(tokens)) == document


def test_folded_tokens_are_shared_and_have_no_capitals(folding: Tokenizer) -> None:
    pieces = folding.token_bytes
    assert not any(65 <= byte <= 90 for piece in pieces[260:] for byte in piece)
    small, large = (folding.encode(text).tolist() for text in (b"and in the end", b"and in The end"))
    assert [pieces[t] for t in large if t not in small] == [CAPITAL]
    assert any(len(piece) > 1 and piece.endswith(CAPITAL) for piece in pieces[260:])  # a full stop and a mark


def test_a_model_says_that_it_folds(folding: Tokenizer, lossless: Tokenizer) -> None:
    assert folding.folds and not lossless.folds
    again = Tokenizer(folding.model)
    assert again.folds and again.decode(again.encode(b"The NASA")) == b"The NASA"
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(folding.model)
    assert processor.EncodeAsIds(fold(b"By The NASA").decode()) == folding.encode(b"By The NASA").tolist()


def test_splitting_gives_each_token_its_text(folding: Tokenizer) -> None:
    tokens = folding.encode(b"end. The NASA")
    for piece, length, text in zip(
        (folding.token_bytes[t] for t in tokens),
        folding.token_lengths[tokens].tolist(),
        folding.split(tokens),
        strict=True,
    ):
        assert len(text) == length and text.lower() == piece.translate(None, MARKS)


def test_challenge_tables_of_folded_text(folding: Tokenizer) -> None:
    base, space, boundary = folding.challenge_tables()
    for document in list(val_documents())[:20]:
        tokens = np.append(BOS, folding.encode(document)).astype(np.int64)
        counted = base[tokens[1:]] + (space[tokens[1:]] & ~boundary[tokens[:-1]])
        first = space[tokens[1]]  # the table gives no byte to a space behind BOS
        assert counted.sum() + first == len(document)


def test_the_one_character_that_cannot_be_kept(lossless: Tokenizer) -> None:
    assert lossless.decode(lossless.encode("a▁b".encode())) == b"a b"


def test_newlines_survive_training(lossless: Tokenizer) -> None:
    pieces = lossless.token_bytes[260:]  # beyond the single bytes
    assert b"\n" in pieces
    assert any(len(piece) > 1 and b"\n" in piece for piece in pieces)
    tokens = lossless.encode(b"One line.\nAnother line.").tolist()
    assert sum(b"\n" in lossless.token_bytes[token] for token in tokens if token >= 260) == 1


def test_special_tokens_and_bytes(lossless: Tokenizer) -> None:
    assert lossless.vocab_size == 600
    assert lossless.token_bytes[:4] == [b""] * 4
    assert lossless.token_bytes[4:260] == [bytes([i]) for i in range(256)]
    assert [lossless.decode(lossless.encode(b"2024")[i : i + 1]) for i in range(4)] == [b"2", b"0", b"2", b"4"]


def test_the_same_text_gives_the_same_model(lossless: Tokenizer) -> None:
    assert train_tokenizer(list(train_documents())[-300:], 600).model == lossless.model


def test_runs_of_spaces_become_tokens() -> None:
    tokenizer = train_tokenizer([b"if x:\n        return 1\n    else:\n        return 2\n"] * 9, 300)
    assert b"        " in tokenizer.token_bytes or b"    " in tokenizer.token_bytes


def test_little_text_gives_a_smaller_vocabulary() -> None:
    tokenizer = train_tokenizer([b"aab"], 4096)
    assert 260 < tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode(b"aab\xc3\xa9")) == b"aab\xc3\xa9"


def test_refusals(challenge: Tokenizer) -> None:
    for size in (259, 65537):
        with pytest.raises(CodecError, match="choose one from 260 to 65,536"):
            train_tokenizer([b"a"], size)
    for nothing in ([], [b""]):
        with pytest.raises(FormatError, match="no text"):
            train_tokenizer(nothing, 300)
    with pytest.raises(CodecError, match="choose a larger one"):
        train_tokenizer([bytes(range(32, 127))], 262)

    def broken():
        yield b"some text"
        raise FormatError("line 2")

    with pytest.raises(FormatError, match=r"^line 2$"):
        train_tokenizer(broken(), 300)
    for model in (b"", b"junk", challenge.model[:1000]):
        with pytest.raises(FormatError, match="tokenizer"):
            Tokenizer(model)


def test_command(tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "t.model"
    source.write_bytes(b"\n\n".join(list(val_documents())[:20]))
    arguments = ["tokenizer", "train", str(source), "-o", str(output), "--vocab-size", "400", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    tokenizer = Tokenizer(output.read_bytes())
    assert (report["vocab_size"], report["sha256"]) == (400, tokenizer.sha256)
    assert tokenizer.decode(tokenizer.encode(source.read_bytes())) == source.read_bytes()


def test_a_normalising_tokenizer_is_lossy():
    assert sp1024().lossy
    shipped = Path(__file__).resolve().parents[3] / "artifacts" / "models" / "small.pack"
    assert not codec.open(shipped.read_bytes()).tokenizer.lossy


@pytest.mark.parametrize("text", ["你好世界\n", "a", "words\nin\nlines\n"])
@pytest.mark.parametrize("folds", [False, True])
def test_text_without_spaces_makes_a_lossless_tokenizer_too(text, folds):
    tokenizer = train_tokenizer([text.encode()], 300, folds)
    for document in (b"a b", b" two  spaces ", text.encode() + b" and\n\tmore"):
        assert tokenizer.decode(tokenizer.encode(document)) == document

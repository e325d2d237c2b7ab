"""codec.archive.encode_files: interrupted and gone on with, the archive is the same to the byte; appended to, the old
one lasts.
"""

from pathlib import Path

import pytest

import codec
from codec.archive import encode_files as encoding
from codec.archive.encode_files import Tally, encode_files, partial
from codec.archive.journal import Journal
from codec.archive.members import find_sources
from codec.archive.reader import ArchiveReader
from codec.errors import CodecError, FormatError, MismatchError
from codec.text.open_coder import make_coder
from tests.support.fuzzing import blob, pack
from trainer.data.sample import val_documents

TEXTS = [document[:150] for document in list(val_documents())[:12]]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """in/ has a dozen small files, and a group takes two or three of them."""
    monkeypatch.setattr(encoding, "GROUP_BYTES", {"cpu": 301})
    (tmp_path / "in").mkdir()
    for n, text in enumerate(TEXTS):
        (tmp_path / "in" / f"{n:02}").write_bytes(text)
    return tmp_path


def encode(folder: Path, target: str = "a.upz", inputs: str = "in", **options) -> Tally:
    target_path = folder / target
    return encode_files(*find_sources([folder / inputs], target_path), target_path, pack(), **options)


class Stop(Exception):
    """Stands for a kill: raised in the middle of coding."""


def stop_after(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop once so many groups, and one more, have been committed."""
    left = iter(range(groups))

    def add(journal: Journal, frame: bytes) -> None:
        plain(journal, frame)
        if next(left, None) is None:
            raise Stop

    plain = Journal.add
    monkeypatch.setattr(Journal, "add", add)


def test_the_archive_is_that_of_the_writer(folder):
    done = encode(folder)
    assert (done.documents, done.text_bytes, done.resumed) == (12, sum(map(len, TEXTS)), 0)
    assert done.tokens == sum(record.tokens for record in make_coder(pack()).encode(TEXTS))
    packed = (folder / "a.upz").read_bytes()
    assert codec.decode(pack(), packed) == TEXTS
    end = ArchiveReader((folder / "a.upz").open("rb"), pack()).offsets[-1]
    assert codec.encode(pack(), TEXTS)[:end] == packed[:end]
    assert [p.name for p in folder.iterdir()] == ["in", "a.upz"] or not partial(folder / "a.upz").exists()


@pytest.mark.parametrize("limit", [301, 100, 10_000])
def test_gone_on_with_after_every_group(folder, monkeypatch, limit):
    """Groups may be others than before: another device has larger ones."""
    encode(folder, "whole.upz")
    target, seen = folder / "a.upz", []
    for groups in range(2):
        with monkeypatch.context() as patched:
            stop_after(0 if groups else 1, patched)
            with pytest.raises(Stop):
                encode(folder, resume=True)
        assert not target.exists()
        data = partial(target).read_bytes()
        seen.append(len(data))
        with pytest.raises(FormatError):
            codec.decode(pack(), data)
    assert seen == sorted(set(seen))
    monkeypatch.setattr(encoding, "GROUP_BYTES", {"cpu": limit})
    done = encode(folder, resume=True)
    assert 0 < done.resumed < done.text_bytes == sum(map(len, TEXTS))
    assert target.read_bytes() == (folder / "whole.upz").read_bytes()
    assert not partial(target).exists()


def test_without_resume_it_begins_again(folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(Stop):
            encode(folder)
    assert encode(folder).resumed == 0
    assert codec.decode(pack(), (folder / "a.upz").read_bytes()) == TEXTS
    assert encode(folder, resume=True).resumed == 0  # nothing was left


def test_another_input_does_not_go_on(folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(Stop):
            encode(folder)
    left = partial(folder / "a.upz").read_bytes()
    (folder / "in" / "01").write_bytes(TEXTS[1] + b"!")
    with pytest.raises(MismatchError, match="document 1 is not the one that was coded before"):
        encode(folder, resume=True)
    (folder / "few").mkdir()
    (folder / "few" / "0").write_bytes(TEXTS[0])
    with pytest.raises(MismatchError, match="document 1 is not"):
        encode(folder, inputs="few", resume=True)
    (folder / "in" / "01").write_bytes(TEXTS[1])
    assert partial(folder / "a.upz").read_bytes() == left
    assert encode(folder, resume=True).resumed


def test_another_pack_does_not_go_on(folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(Stop):
            encode(folder)
    state = codec.decompress(blob())
    state["tok_emb.weight"] *= 2
    other = codec.open(codec.compress(state, pack().config, pack().tokenizer))
    with pytest.raises(MismatchError, match="leave out --resume"):
        encode_files(*find_sources([folder / "in"], folder / "a.upz"), folder / "a.upz", other, resume=True)


def test_appending(folder, monkeypatch):
    encode(folder)
    target, old = folder / "a.upz", (folder / "a.upz").read_bytes()
    (folder / "more").mkdir()
    for n in range(9):
        (folder / "more" / f"new{n}").write_bytes(b"%d " % n * 90)
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(Stop):
            encode(folder, inputs="more", append=True)
    assert target.read_bytes() == old
    assert encode(folder, inputs="more", append=True, resume=True).resumed
    longer = target.read_bytes()
    assert longer.startswith(old)
    reader = ArchiveReader(target.open("rb"), pack())
    assert reader.decode() == [*TEXTS, *(b"%d " % n * 90 for n in range(9))]
    assert [name for name, _, _ in reader.metadata["files"]][10:14] == ["10", "11", "new0", "new1"]
    target.write_bytes(old)
    encode(folder, inputs="more", append=True)
    assert target.read_bytes() == longer
    with pytest.raises(FormatError, match="there are two of it"):
        encode(folder, inputs="more", append=True)
    assert target.read_bytes() == longer


def test_what_cannot_be_appended_to(folder):
    for content, error in ((None, "existing, readable"), (b"", "not a .upz"), (b"UPTX", "truncated")):
        if content is not None:
            (folder / "a.upz").write_bytes(content)
        with pytest.raises(FormatError, match=error):
            encode(folder, append=True)
    assert not partial(folder / "a.upz").exists()


def test_an_archive_that_changes_while_it_is_appended_to(folder, monkeypatch):
    encode(folder)
    (folder / "more").mkdir()
    (folder / "more" / "new").write_bytes(b"new")
    changed = codec.encode(pack(), [b"another"])

    def change(tally: Tally, amount: float) -> None:
        (folder / "a.upz").write_bytes(changed)

    with pytest.raises(MismatchError, match="changed while"):
        encode(folder, inputs="more", append=True, watch=change)
    assert (folder / "a.upz").read_bytes() == changed


def test_nothing_to_encode(folder):
    (folder / "in.jsonl").write_bytes(b"")
    assert encode(folder, inputs="in.jsonl").documents == 0
    assert codec.decode(pack(), (folder / "a.upz").read_bytes()) == []
    (folder / "nothing").mkdir()
    assert encode(folder, "b.upz", inputs="nothing").documents == 0


def test_a_bad_line_leaves_what_was_coded_before_it(folder):
    good = b"".join(b'{"text": "%s"}\n' % (b"%d words " % n * 40) for n in range(9))
    (folder / "t.jsonl").write_bytes(b"bad\n" + good)
    with pytest.raises(CodecError, match="line 1"):
        encode(folder, inputs="t.jsonl")
    assert not partial(folder / "a.upz").exists()
    (folder / "t.jsonl").write_bytes(good + b"bad\n")
    with pytest.raises(CodecError, match="line 10"):
        encode(folder, inputs="t.jsonl")
    (folder / "t.jsonl").write_bytes(good)
    assert encode(folder, inputs="t.jsonl", resume=True).resumed
    assert codec.decode(pack(), (folder / "a.upz").read_bytes()) == [b"%d words " % n * 40 for n in range(9)]


def test_the_watch_adds_up(folder):
    amounts: list[float] = []
    encode(folder, watch=lambda tally, amount: amounts.append(amount))
    assert sum(amounts) == pytest.approx(sum(map(len, TEXTS)))

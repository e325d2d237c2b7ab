"""codec.archive.encode_files: interrupted and gone on with, the archive is the same to the byte; appended to, the old
archive stays whole until the new one is.
"""

import os
from io import BytesIO
from pathlib import Path

import pytest

import codec
from codec.archive import encode_files as encode_files_module
from codec.archive import part_coder
from codec.archive.encode_files import Settings, Tally, encode_files, encode_stream, partial
from codec.archive.journal import Journal
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from codec.archive.whole.description import describe
from codec.errors import CodecError, FormatError, MismatchError
from tests.support.by_heart import BLOB, PACK, by_heart, pack_of
from trainer.data.sample import val_documents

pytestmark = pytest.mark.usefixtures("by_heart")
__all__ = ["by_heart"]

TEXTS = [document[:150] for document in list(val_documents())[:12]]
LINES = b"".join(b'{"n": %d, "text": "%s"}\r\n' % (n, b"words of line %d" % n * 5) for n in range(30))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """in/ has a dozen small files, lines.jsonl beside it, and a group takes two or three documents."""
    monkeypatch.setattr(part_coder, "GROUP_BYTES", {"cpu": 301})
    monkeypatch.setattr(part_coder, "_PIECE", 200)
    (tmp_path / "in").mkdir()
    for n, text in enumerate(TEXTS):
        (tmp_path / "in" / f"{n:02}").write_bytes(text)
    (tmp_path / "lines.jsonl").write_bytes(LINES)
    return tmp_path


SETTINGS = Settings(PACK, independent=True)
"""Records stay apart."""


def encode(folder: Path, target: str = "a.upz", inputs: str = "in", settings: Settings = SETTINGS, **options) -> Tally:
    return encode_files(find_sources([folder / inputs]), folder / target, settings, **options)


def contents(path: Path) -> dict[str, bytes]:
    with ArchiveReader(path, PACK) as reader:
        return {name: reader.open(name).read() for name in reader.names()}


IN = {f"{n:02}": text for n, text in enumerate(TEXTS)}


class Stop(Exception):
    """Stands for a kill: raised in the middle of coding."""


def stop_after(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop once so many groups, and one more, have been committed."""
    left = iter(range(groups))

    def add(journal: Journal, frame: bytes) -> None:
        plain(journal, frame)
        if frame[:1] == b"D" and next(left, None) is None:
            raise Stop

    plain = Journal.add
    monkeypatch.setattr(Journal, "add", add)


@pytest.mark.parametrize("inputs", ["in", "lines.jsonl", "in/03"])
@pytest.mark.parametrize("independent", [True, False])
def test_files_come_back(folder, inputs, independent):
    done = encode(folder, inputs=inputs, settings=Settings(PACK, independent=independent))
    expected = IN if inputs == "in" else {Path(inputs).name: (folder / inputs).read_bytes()}
    assert contents(folder / "a.upz") == expected
    assert (done.text_bytes, done.resumed) == (sum(map(len, expected.values())), 0)
    assert not partial(folder / "a.upz").exists()
    out = BytesIO()
    encode_stream(find_sources([folder / inputs]), out, Settings(PACK, independent=independent))
    assert out.getvalue() == (folder / "a.upz").read_bytes()


def test_lines_are_documents(folder):
    encode(folder, inputs="lines.jsonl")
    with ArchiveReader(folder / "a.upz", PACK) as reader:
        assert len(reader) == 30
        assert reader.decode([8, 0]) == [b"words of line 8" * 5, b"words of line 0" * 5]


def test_equal_documents_and_files_are_stored_once(folder):
    text = b"This line is there three times, and then once more."
    line = b'{"text": "%s"}\n' % text
    (folder / "same.jsonl").write_bytes(line * 3 + b'{"text": "another"}\n' + line)
    encode(folder, inputs="same.jsonl")
    assert describe((folder / "a.upz").read_bytes())["same"] == 3
    assert contents(folder / "a.upz") == {"same.jsonl": line * 3 + b'{"text": "another"}\n' + line}
    (folder / "two").mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / "two" / name).write_bytes(
            os.urandom(5000) if name == "a.txt" else (folder / "two/a.txt").read_bytes()
        )
    encode(folder, "two.upz", inputs="two", settings=Settings())
    assert (folder / "two.upz").stat().st_size < 5200


def test_what_an_archive_of_a_short_text_costs(folder):
    (folder / "note").write_bytes(b"word " * 3)
    for mode, most in ((0o644, 40), (0o600, 40)):
        (folder / "note").chmod(mode)
        encode(folder, inputs="note", settings=Settings(PACK), append=False)
        with ArchiveReader(folder / "a.upz") as reader:
            payload = int(reader.contents.lengths.sum()) - 5
        assert (folder / "a.upz").stat().st_size - payload - len("note") <= most


@pytest.mark.parametrize("inputs", ["in", "lines.jsonl"])
@pytest.mark.parametrize("limit", [301, 100, 10_000])
def test_gone_on_with_after_every_group(folder, monkeypatch, limit, inputs):
    """Groups may be others than before: another device has larger ones."""
    encode(folder, "whole.upz", inputs)
    target, seen = folder / "a.upz", []
    for groups in range(2):
        with monkeypatch.context() as patched:
            stop_after(0 if groups else 1, patched)
            with pytest.raises(Stop):
                encode(folder, inputs=inputs, resume=True)
        assert not target.exists()
        data = partial(target).read_bytes()
        seen.append(len(data))
        with pytest.raises(FormatError):
            codec.decode(PACK, data)
    assert seen == sorted(set(seen))
    monkeypatch.setattr(part_coder, "GROUP_BYTES", {"cpu": limit})
    done = encode(folder, inputs=inputs, resume=True)
    assert 0 < done.resumed < done.text_bytes
    assert target.read_bytes() == (folder / "whole.upz").read_bytes()
    assert not partial(target).exists()


def test_work_is_only_lost_when_told_to(folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(Stop):
            encode(folder)
    with pytest.raises(MismatchError, match="go on with --resume"):
        encode(folder)
    assert encode(folder, force=True).resumed == 0
    assert contents(folder / "a.upz") == IN
    assert encode(folder, resume=True).resumed == 0  # nothing was left


def test_another_input_does_not_go_on(folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(Stop):
            encode(folder)
    left = partial(folder / "a.upz").read_bytes()
    (folder / "in" / "01").write_bytes(TEXTS[1] + b"!")
    with pytest.raises(MismatchError, match="the input is not what was coded before"):
        encode(folder, resume=True)
    (folder / "few").mkdir()
    (folder / "few" / "0").write_bytes(TEXTS[0])
    with pytest.raises(MismatchError, match="the input is not"):
        encode(folder, inputs="few", resume=True)
    (folder / "in" / "01").write_bytes(TEXTS[1])
    assert partial(folder / "a.upz").read_bytes() == left
    assert encode(folder, resume=True).resumed


def test_another_pack_does_not_go_on(folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(Stop):
            encode(folder)
    other = pack_of(b"another")
    with pytest.raises(MismatchError, match="begin again with --force"):
        encode(folder, settings=Settings(other, independent=True), resume=True)


def test_appending(folder, monkeypatch):
    encode(folder)
    target, old = folder / "a.upz", (folder / "a.upz").read_bytes()
    (folder / "more").mkdir()
    new = {f"new{n}": b"%d " % n * 90 for n in range(9)}
    for name, text in new.items():
        (folder / "more" / name).write_bytes(text)
    more = sorted((folder / "more").iterdir())

    def append(**options: bool) -> Tally:
        return encode_files(find_sources(more), target, SETTINGS, append=True, **options)

    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(Stop):
            append()
    assert target.read_bytes() == old
    assert append(resume=True).resumed
    longer = target.read_bytes()
    assert longer.startswith(old)
    assert contents(target) == {**IN, **new}
    target.write_bytes(old)
    append()
    assert target.read_bytes() == longer
    with pytest.raises(FormatError, match="there are two of it"):
        append()
    assert target.read_bytes() == longer


def test_a_model_may_come_later(folder):
    """An archive that was made without a model names the model in its new footer."""
    encode(folder, settings=Settings())
    assert describe((folder / "a.upz").read_bytes())["pack"] is None
    encode_files(find_sources([folder / "lines.jsonl"]), folder / "a.upz", SETTINGS, append=True)
    assert describe((folder / "a.upz").read_bytes())["pack"] == PACK.sha256[:16]
    assert contents(folder / "a.upz") == {**IN, "lines.jsonl": LINES}


def test_an_archive_may_hold_its_pack(folder):
    encode(folder, settings=Settings(PACK, independent=True, included=BLOB))
    with ArchiveReader(folder / "a.upz") as reader:
        assert reader.open("03").read() == TEXTS[3]
        assert reader.decode()[0] == TEXTS[0] or len(reader) > 1


def test_what_cannot_be_appended_to(folder):
    for content, error in ((None, "existing, readable"), (b"", "not a .upz"), (b"UPZ", "truncated")):
        if content is not None:
            (folder / "a.upz").write_bytes(content)
        with pytest.raises(FormatError, match=error):
            encode(folder, append=True)
    (folder / "a.upz").write_bytes(codec.encode(PACK, [b"a document without a name"]))
    with pytest.raises(MismatchError, match="documents without names"):
        encode(folder, append=True)
    assert not partial(folder / "a.upz").exists()


def test_an_archive_that_changes_while_it_is_appended_to(folder):
    encode(folder, inputs="lines.jsonl")
    changed = codec.encode(PACK, [b"another"])

    def change(tally: Tally, amount: float) -> None:
        (folder / "a.upz").write_bytes(changed)

    with pytest.raises(MismatchError, match="changed while"):
        encode(folder, append=True, watch=change)
    assert (folder / "a.upz").read_bytes() == changed


def test_nothing_to_encode(folder):
    (folder / "in.jsonl").write_bytes(b"")
    assert encode(folder, inputs="in.jsonl").documents == 0
    assert contents(folder / "a.upz") == {"in.jsonl": b""}
    (folder / "nothing").mkdir()
    assert encode(folder, "b.upz", inputs="nothing").documents == 0


def test_the_watch_adds_up(folder):
    for settings in (SETTINGS, Settings(PACK), Settings()):
        for inputs in ("in", "lines.jsonl"):
            amounts: list[float] = []
            done = encode(
                folder, inputs=inputs, settings=settings, watch=lambda tally, amount, to=amounts: to.append(amount)
            )
            assert sum(amounts) == pytest.approx(done.text_bytes)


def test_an_archive_is_no_wider_than_its_files(folder):
    (folder / "in" / "03").chmod(0o600)
    encode(folder)
    assert (folder / "a.upz").stat().st_mode & 0o777 == 0o600


def test_two_jobs_never_append_at_once(folder, monkeypatch):
    """The second comes by another name, when the first has looked at the archive and is about to replace it."""
    encode(folder)
    target, link = folder / "a.upz", folder / "link.upz"
    link.symlink_to(target)
    for name in ("one", "two"):
        (folder / name).write_bytes(name.encode() * 50)
    refused = []
    plain = encode_files_module._Before.copy

    def copy(before, out):
        plain(before, out)
        if not refused:
            with pytest.raises(CodecError, match="another process is at this job") as error:
                encode_files(find_sources([folder / "two"]), link, SETTINGS, append=True)
            refused.append(error)

    monkeypatch.setattr(encode_files_module._Before, "copy", copy)
    encode_files(find_sources([folder / "one"]), target, SETTINGS, append=True)
    assert refused
    encode_files(find_sources([folder / "two"]), link, SETTINGS, append=True)
    assert contents(target) == {**IN, "one": b"one" * 50, "two": b"two" * 50}

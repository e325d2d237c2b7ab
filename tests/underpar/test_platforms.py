"""underpar.platforms: what is untested is said once; what cannot work elsewhere refuses by name."""

import pytest

import codec.cache
from codec.errors import CodecError
from eval.audit import sandbox
from underpar import platforms


@pytest.mark.parametrize(
    ("system", "processor", "tested"),
    [("linux", "x86_64", True), ("linux", "aarch64", True), ("linux", "riscv64", False), ("darwin", "arm64", False)],
)
def test_an_untested_machine_is_told_once(system, processor, tested, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(platforms.sys, "platform", system)
    monkeypatch.setattr(platforms, "machine", lambda: processor)
    monkeypatch.setattr(codec.cache, "cache_folder", lambda: tmp_path)
    assert platforms.is_tested() == tested
    if not tested:
        platforms.note_untested()
        said = " ".join(capsys.readouterr().err.split())
        assert system in said and processor in said
        platforms.note_untested()
        assert capsys.readouterr().err == ""


def test_where_nothing_can_be_written_the_line_comes_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(codec.cache, "cache_folder", lambda: tmp_path / "gone")
    for _ in range(2):
        platforms.note_untested()
        assert "were compared on Linux" in " ".join(capsys.readouterr().err.split())


def test_the_sandbox_refuses_other_systems_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(CodecError, match="needs namespaces of Linux; this is darwin"):
        sandbox.plan_of(tmp_path, (), 1 << 30, [], 0)

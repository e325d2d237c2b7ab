"""underpar.arguments: what it reads is what typer reads; the rest it leaves to typer."""

import functools
from pathlib import Path
from typing import Any

import pytest
import typer

from codec.cli import decode, encode
from codec.text.policy import Adaptation
from underpar.arguments import read


def by_typer(command: Any, words: list[str]) -> dict[str, Any] | None:
    """The arguments that typer gives to a command, None where it refuses the words."""
    given: dict[str, Any] = {}

    @functools.wraps(command)
    def spy(**arguments: Any) -> None:
        given.update(arguments)

    app = typer.Typer(add_completion=False)
    app.command("x")(spy)
    try:
        typer.main.get_command(app).main(words, standalone_mode=False)
    except Exception:
        return None
    return given


RIGHT = {
    "encode": [
        [],
        ["a"],
        ["-"],
        ["a", "b", "-o", "c", "-f"],
        ["-q", "a", "--output", "x y", "--rm", "-v"],
        ["a", "-T", "3", "--adapt", "recall", "--restart-every", "4096", "--independent"],
        ["a", "--no-independent", "--include-model", "-m", "none", "--json", "-c"],
        ["a", "-o", "-", "--resume", "--append", "--device", "cpu,cpu"],
    ],
    "decode": [
        ["a.upz", "--file", "x", "--bytes", "3:6", "-o", "y"],
        ["a.upz", "--document", "0", "--document", "12", "-o", "-"],
        ["-t", "a.upz", "b.upz", "-l", "--special-bits", "-m", "p.pack"],
    ],
}


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, many in RIGHT.items() for words in many])
def test_what_is_read_is_what_typer_reads(name, words):
    command = {"encode": encode.encode, "decode": decode.decode}[name]
    found, expected = read(command, words), by_typer(command, words)
    assert found is not None
    assert expected is not None
    assert {key: expected[key] for key in found} == found
    assert {key: type(expected[key]) for key in found} == {key: type(value) for key, value in found.items()}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"], ["--no-such"], ["a", "-o"], ["a", "-T", "0"], ["a", "-T", "x"], ["a", "-T", "-1"], ["a", "-qf"],
        ["a", "--adapt", "none "], ["a", "--restart-every", "12"], ["a", "--output=x"], ["a", "-o", ""], ["--", "a"],
        ["a", "-o", "x", "-o", "y"], ["a", "-o", "-f"],
    ],
)  # fmt: skip
def test_the_rest_is_left_to_typer(words):
    assert read(encode.encode, words) is None


def test_values_have_their_types():
    assert read(encode.encode, ["a", "--adapt", "recall"]) == {"inputs": [Path("a")], "adapt": Adaptation.RECALL}

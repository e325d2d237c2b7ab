"""README and docs say what is there: commands that parse, links and pictures that exist, names that resolve."""

import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import groupby
from pathlib import Path

import pytest

from tests.support import cli_page
from tests.support.cli_page import commands, is_option, page
from trainer.recipe import Recipe
from underpar import help

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
ROOMS = ("codec", "trainer", "eval", "artifacts", "underpar")
COMMANDS = dict(commands())
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_NAME = re.compile(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+")
_PATH = re.compile(rf"(?:{'|'.join(ROOMS)}|docs|tests|notebooks|examples)(?:/[\w.-]+)+/?")


def prose(text: str) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", text)


def calls(text: str) -> list[list[str]]:
    """The arguments of every call of `underpar` in the code blocks of a page, however it is started."""
    found = []
    for kind, block in _FENCE.findall(text):
        if kind not in ("", "sh", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            for ends, group in groupby(lexer, lambda word: word in ("|", "||", "&&", ";")):
                words = list(group)
                start = words.index("underpar") if "underpar" in words and not ends else -1
                if start == 0 or (start > 0 and words[start - 1] in ("-m", "$")):
                    found.append(words[start + 1 :])
    return found


def complaint(words: list[str]) -> str | None:
    """What is wrong with the arguments of a call of `underpar`; nothing is run and no file is looked for."""
    words = [
        word
        for n, word in enumerate(words)
        if not word.startswith(("<", ">")) and (n == 0 or words[n - 1] not in ("<", ">"))
    ]
    name = next((n for n in (" ".join(words[:2]), words[0] if words else "") if n in COMMANDS), None)
    if name is None:
        return f"no such command: underpar {' '.join(words[:2])}"
    rest, given, arguments = words[len(name.split()) :], set(), 0
    options = {spelling: p for p in COMMANDS[name].params for spelling in [*p.opts, *p.secondary_opts] if is_option(p)}
    while rest:
        word = rest.pop(0)
        option, _, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if option == "--help":
            return None
        if not option.startswith("-") or option == "-":
            arguments += 1
        elif option not in options:
            return f"underpar {name} has no option {option}"
        else:
            given.add(options[option].name)
            if not options[option].is_flag and not value:
                if not rest:
                    return f"underpar {name}: {option} lacks its value"
                rest.pop(0)
    positional = [p for p in COMMANDS[name].params if not is_option(p)]
    least = sum(p.required for p in positional)
    most = 1_000 if any(p.nargs == -1 for p in positional) else len(positional)
    if not least <= arguments <= most:
        return f"underpar {name}: {arguments} arguments, expected {least} to {most}"
    lacking = [p.opts[0] for p in options.values() if p.required and p.name not in given]
    return f"underpar {name} lacks {lacking[0]}" if lacking else None


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or an attribute of one; without Triton, modules that need it are believed."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if error.name == "triton":
                return True
            continue
        for part in parts[n:]:
            known = hasattr(found, part) or part in getattr(found, "__annotations__", {})
            if not known:
                return False
            found = getattr(found, part, None)
        return True
    return False


def anchors(text: str) -> set[str]:
    """What links may name in a page: its headings as the usual renderers spell them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """Links of a page that lead to no file, or to a heading that is not there."""
    found = []
    for link in _LINK.findall(prose(text)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


def wrong_names(text: str) -> list[str]:
    """Names in back-quotes that are no module, attribute, file or command of the project."""
    found = []
    for code in _CODE.findall(prose(text)):
        name = _NAME.match(code)
        if name and not re.match(r"[\w/]", code[name.end() :]) and not resolves(name[0]):
            found.append(code)
        if _PATH.fullmatch(code) and "NAME" not in code and not (ROOT / code).exists():
            found.append(code)
        words = code.split()
        if words[0] == "underpar" and len(words) > 1 and words[1].isalpha():
            groups = {name.split()[0] for name in COMMANDS}
            if words[1] not in groups and not words[1].isupper():
                found.append(code)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_true(path):
    text = path.read_text(encoding="utf-8")
    if path != cli_page.PAGE:  # its usage lines name no values
        assert [found for call in calls(text) if (found := complaint(call))] == []
    assert broken_links(path, text) == []
    assert wrong_names(text) == []


def test_what_is_wrong_is_found():
    block = "```\n{}\n```\n".format
    good = "torchrun --nproc-per-node=2 -m underpar train record train.seconds=0 -o R && underpar pack R -o m.pack  # x"
    assert [complaint(call) for call in calls(block(good))] == [None, None]
    assert [complaint(call) for call in calls(block("underpar pack R \\\n  -o m.pack --budget 5 > out"))] == [None]
    for line, found in [
        ("underpar packs R", "no such command"),
        ("underpar pack R -o m.pack --bugdet 5", "no option --bugdet"),
        ("underpar pack R S -o m.pack", "2 arguments"),
        ("underpar pack -o m.pack", "0 arguments"),
        ("underpar unpack m.pack", "lacks --output"),
        ("underpar pack R -o", "lacks its value"),
        ("underpar data prepared x", "no such command"),
    ]:
        assert found in str(complaint(calls(block(line))[0])), line
    assert len(broken_links(ROOT / "README.md", "[a](docs/none.md) ![b](none.svg) [c](README.md#none)")) == 3
    wrong = "`codec.none` `codec.open.none` `trainer.recipe.Nothing` `codec/none.py` `underpar nothing`"
    assert len(wrong_names(wrong)) == 5
    assert (
        wrong_names("`codec.open` `codec.compress(...)` `codec.pack.reader.Pack` `codec/pack/` `underpar pack`") == []
    )


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150


def test_the_readmes_python_runs():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_of_commands_is_up_to_date():
    written = cli_page.PAGE.read_text(encoding="utf-8")
    assert written == page() + "\n", "run: python -m tests.support.cli_page"


def test_the_help_of_all_commands_is_up_to_date():
    assert help.FILE.read_text(encoding="utf-8") == cli_page.help_text(), "run: python -m tests.support.cli_page"


def test_every_option_of_a_recipe_is_described():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for section in fields(Recipe):
        table = text.split(f"### [{section.name}]")[1].split("\n#")[0]
        options = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert options == [option.name for option in fields(getattr(Recipe(), section.name))]


def test_pictures_are_small():
    assert max(path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()) < 100_000


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.long) if path.stem == "train_and_pack" else path for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_an_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

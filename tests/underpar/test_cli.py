"""underpar.cli: what every command owes its caller: exit statuses, one JSON object on stdout, a quick --help."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import eval.score.models
from codec.console import CheckFailed
from codec.errors import MismatchError
from codec.model.checkpoint import save_checkpoint
from codec.model.config import ModelConfig
from tests.support.helpers import ROOT
from trainer.data.sample import sp1024
from trainer.data.shards import write_shard
from trainer.model.gpt import GPT
from underpar.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a random model."""
    folder = tmp_path_factory.mktemp("run")
    config = ModelConfig(vocab_size=1024, window=32, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1)
    torch.manual_seed(0)
    save_checkpoint(folder, GPT(config).state_dict(), config, sp1024())
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Some words that are to be scored, for the second time today. " * 4)
    return path


@pytest.fixture
def underpar(monkeypatch, capsys):
    """Run the command line here; returns (status, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["underpar", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


def python(*words):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_help_lists_the_commands_of_the_rooms():
    done = python("-m", "underpar", "--help")
    assert done.returncode == 0
    assert "Usage: underpar" in done.stdout
    assert "bpb" in done.stdout
    assert "train" in done.stdout
    assert "--install-completion" in done.stdout


def test_help_needs_none_of_the_heavy_modules():
    heavy = ("torch", "numba", "matplotlib", "huggingface_hub", "pyarrow")
    done = python("-c", f"import sys, underpar.commands; print([m for m in {heavy} if m in sys.modules])")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_json_is_the_only_thing_on_stdout(underpar, run, text):
    status, out, _ = underpar("bpb", run, "--docs", text, "--policy", "document", "--json")
    assert status == 0
    assert out.count("\n") == 1
    result = json.loads(out)
    assert {"bpb", "loss_nats", "tokens", "text_bytes", "policy", "seconds"} <= set(result)
    assert result["policy"] == "document"
    assert result["text_bytes"] == text.stat().st_size - 1  # the tokenizer drops the space at the end


def test_a_person_reads_a_table(underpar, run, text):
    status, out, _ = underpar("bpb", run, "--docs", text, "--targets", "32")
    assert status == 0
    assert "loss_nats" in out
    assert "{" not in out


def test_the_challenges_byte_table_is_checked_against_the_bytes(underpar, run, tmp_path):
    tokenizer = sp1024()
    space = tokenizer.token_bytes.index(b" the")
    write_shard(tmp_path / "odd.bin", np.array([1, space] * 40))
    status, out, err = underpar("bpb", run, "--docs", tmp_path / "odd.bin", "--json")
    assert status == 0
    assert (json.loads(out)["text_bytes"], json.loads(out)["decoded_bytes"]) == (3 * 32, 4 * 32)
    assert "the challenge's table counts 96 bytes, the decoded text has 128" in err


def test_bad_input_is_one_line_and_status_2(underpar, run, tmp_path):
    for words in (
        ("bpb", tmp_path / "none", "--docs", "x.txt"),
        ("bpb", run, "--docs", tmp_path / "none.jsonl", "--json"),
        ("bpb", run, "--docs", __file__, "--json"),
    ):
        status, out, err = underpar(*words)
        assert (status, out) == (2, "")
        assert err.startswith("underpar: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("bpb",), ("bpb", "m", "--docs", "d", "--policy", "best"), ("bpb", "m", "--docs", "d", "--no"), ("what",)]
)
def test_wrong_usage_is_status_2(underpar, words):
    status, out, err = underpar(*words)
    assert (status, out) == (2, "")
    assert "Usage: underpar" in err


def test_a_file_named_like_standard_input(underpar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_bytes(b"what is in the file")
    assert underpar("encode", "./-", "-m", "none", "-q") == (0, "", "")
    assert underpar("encode", ".//-", "--model=none", "-q", "-o", "other.upz") == (0, "", "")  # words that typer reads
    (tmp_path / "-").unlink()
    assert underpar("decode", "./-.upz", "-q") == (0, "", "")
    assert (tmp_path / "-").read_bytes() == b"what is in the file"
    assert underpar("decode", "other.upz", "-o", "./-", "-f", "-q") == (0, "", "")


def test_words_of_other_tools_are_understood(underpar):
    for word, name in (("compress", "encode"), ("extract", "decode")):
        status, _, err = underpar(word, "file")
        assert status == 2
        assert f"Did you mean '{name}'?" in err


@pytest.mark.parametrize(
    "error, status, message",
    [
        (MismatchError("found one thing\nand another"), 2, "underpar: found one thing and another\n"),
        (CheckFailed("the bytes differ"), 1, "underpar: the bytes differ\n"),
        (PermissionError(13, "Permission denied", "f"), 2, "underpar: [Errno 13] Permission denied: 'f'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_becomes_of_an_error(underpar, monkeypatch, error, status, message):
    def broken(*_):
        raise error

    monkeypatch.setattr(eval.score.models, "load_model", broken)
    got, out, err = underpar("bpb", "m", "--docs", "d", "--json")
    assert (got, out) == (status, "")
    assert err.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_waits_for_no_thread(number):
    script = f"""
import signal, threading
from underpar import cli
signal.signal({number.value}, signal.SIG_DFL)  # a script in the background ignores SIGINT
def command():
    threading.Thread(target=threading.Event().wait).start()
    signal.raise_signal({number.value})
cli._command = command
cli.run()
"""
    done = python("-c", script)
    assert (done.returncode, done.stderr) == (128 + number, f"underpar: interrupted by {number.name}\n")


def test_the_module_gives_the_status_to_the_shell(tmp_path):
    done = python("-m", "underpar", "bpb", tmp_path / "none", "--docs", "x.txt")
    assert done.returncode == 2
    assert done.stderr.startswith("underpar: ")

"""Fetching: from a stub on this machine that speaks as much of the hub as a download needs."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.errors import FormatError, MismatchError
from tests.support.helpers import ROOT
from trainer.data.fetch import fetch
from trainer.data.prepare import prepare
from trainer.data.sample import sp1024
from trainer.data.shards import read_shard, write_shard
from trainer.data.tokenizer import train_tokenizer

PREFIX = "/datasets/some/repo/resolve/main/datasets/"
MANIFEST = {
    "datasets": [
        {
            "name": "fineweb10B_sp1024",
            "tokenizer_name": "sp_bpe_1024",
            "path": "datasets/fineweb10B_sp1024",
            "stats": {"files_train": 2, "files_val": 1},
        },
        {"name": "fineweb10B_byte260", "tokenizer_name": "byte", "stats": {"files_train": 2, "files_val": 1}},
    ],
    "tokenizers": [
        {"name": "sp_bpe_1024", "model_path": "tokenizers/fineweb_1024_bpe.model"},
        {"name": "byte", "path": "tokenizers/byte.json"},
    ],
}
COMMAND = """
import sys
from codec.errors import CodecError
from underpar.commands import app
try:
    app()
except CodecError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Hub:
    """Files by path below `datasets/`; `requests` are the GETs that came; the first `failures` of them break off."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.requests: list[str] = []
        self.failures = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                data = hub.files.get(self.path.removeprefix(PREFIX)) if self.path.startswith(PREFIX) else None
                if data is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0123456789" * 4)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if not body:
                    return
                hub.requests.append(self.path.removeprefix(PREFIX))
                if hub.failures and self.path.endswith(".bin"):
                    hub.failures -= 1
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    return
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = {"manifest.json": json.dumps(MANIFEST).encode(), "tokenizers/fineweb_1024_bpe.model": sp1024().model}
    for i, name in enumerate(("train_000000", "train_000001", "val_000000")):
        tokens = np.random.default_rng(i).integers(4, 1024, 40_000)
        tokens[:: 100 * (i + 1)] = 1
        write_shard(tmp_path / "shard", tokens)
        files[f"datasets/fineweb10B_sp1024/fineweb_{name}.bin"] = (tmp_path / "shard").read_bytes()
    hub = Hub(files)
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def run(hub: Hub, tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `data fetch` into tmp_path/out in a process of its own: the library reads HF_ENDPOINT when it is imported."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)} | environ
    command = [sys.executable, "-c", COMMAND, "data", "fetch", "--repo", "some/repo", "-o", str(tmp_path / "out")]
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def test_fetch_continue_and_refuse(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(hub, tmp_path, "--train-shards", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
        "tokenizer.model",
        "manifest.json",
    }
    for name in ("train_000000", "val_000000"):
        assert (out / f"fineweb_{name}.bin").read_bytes() == hub.files[f"datasets/fineweb10B_sp1024/fineweb_{name}.bin"]
    result = json.loads(done.stdout)
    train = result["splits"]["train"]
    assert (train["documents"], train["tokens"]) == (400, 40_000)
    assert train["canonical_bytes"] == len(sp1024().decode(read_shard(out / "fineweb_train_000000.bin")))
    assert json.loads((out / "manifest.json").read_text())["splits"] == result["splits"]

    hub.requests.clear()
    hub.failures = 1
    done = run(hub, tmp_path, "--train-shards", "2")
    assert done.returncode == 0, done.stderr
    name = "datasets/fineweb10B_sp1024/fineweb_train_000001.bin"
    assert (out / "fineweb_train_000001.bin").read_bytes() == hub.files[name]
    # The first answer broke off in the middle; the shards of the first call were not asked for again.
    assert [path for path in hub.requests if path.endswith(".bin")] == [name, name]

    hub.files["tokenizers/fineweb_1024_bpe.model"] = train_tokenizer([b"other text"], 300).model
    done = run(hub, tmp_path)
    assert done.returncode == 1 and "holds other shards" in done.stderr


def test_what_is_no_shard_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["datasets/fineweb10B_sp1024/fineweb_val_000000.bin"] += b"\0"
    done = run(hub, tmp_path)
    assert done.returncode == 1 and "FormatError" in done.stderr and "oversized" in done.stderr
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize("model", ["tokenizers/none.model", "../../../none.model"])
def test_a_file_that_is_not_there(hub: Hub, tmp_path: Path, model: str) -> None:
    hub.files["manifest.json"] = json.dumps(MANIFEST).replace("tokenizers/fineweb_1024_bpe.model", model).encode()
    done = run(hub, tmp_path)
    assert done.returncode == 1 and f"FetchError: datasets/{model}" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_connection(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "FetchError" in done.stderr and "HF_ENDPOINT" in done.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("manifest", "arguments", "message"),
    [
        (json.dumps(MANIFEST), {"variant": "sp9"}, "no variant sp9; it has sp1024, byte260"),
        (json.dumps(MANIFEST), {"variant": "byte260"}, "not a SentencePiece model"),
        (json.dumps(MANIFEST), {"train_shards": 3}, "3 training shards of sp1024 wanted, some/repo has 2"),
        (json.dumps(MANIFEST).replace('"files_val": 1', '"files_val": "x"'), {}, "not a manifest"),
        (json.dumps(MANIFEST).replace("stats", "x"), {}, "not a manifest"),
        ("[]", {}, "not a manifest"),
        ("[" * 100_000, {}, "not JSON"),
        ("{", {}, "not JSON"),
        ("\xff", {}, "not JSON"),
    ],
)
def test_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "manifest").write_text(manifest, "latin-1")
    monkeypatch.setattr("trainer.data.fetch._download", lambda repo, name, folder: tmp_path / "manifest")
    with pytest.raises(FormatError, match=message):
        fetch(tmp_path / "out", repo="some/repo", **arguments)


def test_folder_of_other_text_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.txt").write_bytes(b"My own text.")
    prepare([tmp_path / "in.txt"], sp1024(), tmp_path / "out")
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "fineweb_1024_bpe.model").write_bytes(sp1024().model)
    monkeypatch.setattr("trainer.data.fetch._download", lambda repo, name, folder: tmp_path / Path(name).name)
    with pytest.raises(MismatchError, match="holds other shards"):
        fetch(tmp_path / "out", repo="some/repo")

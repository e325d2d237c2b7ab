"""Training runs on tiny data: loss falls, processes agree, a killed or interrupted run goes on as if never stopped."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import codec
import trainer.run.log
import trainer.run.loop
import trainer.run.step
from codec.console import CheckFailed
from codec.errors import CodecError, FormatError, MismatchError
from codec.model.checkpoint import load_checkpoint
from codec.model.tokenizer import BOS
from tests.support.helpers import ROOT, lossless_tokenizer
from trainer.data.sample import sp1024
from trainer.data.shards import read_shard, write_shard
from trainer.distributed import World
from trainer.model.gpt import GPT
from trainer.recipe import Recipe, load_recipe
from trainer.run.loop import Outcome, train
from trainer.run.other_models import first_weights
from trainer.run.state import State

TINY = """
[model]
vocab_size = 1024
window = 16
num_layers = 2
model_dim = 16
num_heads = 2
num_kv_heads = 1

[data]
shards = "{shards}"

[optim]
momentum_warmup = 10

[train]
batch_tokens = 128
micro_batches = 2
iterations = 30
seconds = 0
warmdown_steps = 10
ema_decay = 0.9
log_every = 1
checkpoint_seconds = 0
val_tokens = 256
"""

COMMAND = """
from underpar.commands import app

if __name__ == "__main__":
    app()
"""


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same sums in the same order as in processes started with OMP_NUM_THREADS=1, on a CPU."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A TOML recipe over shards of words of five tokens that are easy to learn; beside them, others of any tokens."""
    shards = tmp_path / "shards"
    generator = np.random.default_rng(0)
    words = generator.integers(4, 1024, (12, 5))
    for split, count in (("train", 800), ("val", 100)):
        write_shard(shards / f"x_{split}_000000.bin", words[generator.integers(0, 12, count)].ravel())
        write_shard(tmp_path / "late" / f"x_{split}_000000.bin", generator.integers(4, 1024, count))
    for folder in ("shards", "late"):
        (tmp_path / folder / "tokenizer.model").write_bytes(sp1024().model)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(shards=shards))
    return path


def recipe_of(config: Path, *overrides: str) -> Recipe:
    return load_recipe(str(config), overrides)


def command(config: Path, folder: Path, *overrides: str, processes: int = 1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    script = config.parent / "command.py"
    script.write_text(COMMAND)
    return [sys.executable, *launch, str(script), "train", str(config), *overrides, "-o", str(folder), "--json"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    """Equal weights, and equal losses at every step."""
    first, second = load_checkpoint(a).state_dict, load_checkpoint(b).state_dict
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    losses = [[line.get("train_loss", line.get("val_loss")) for line in metrics(folder)] for folder in (a, b)]
    assert losses[0] == losses[1]


def test_loss_falls_and_the_folder_holds_the_model(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = train(recipe_of(config, "train.iterations=60"), folder)
    lines = metrics(folder)
    assert lines[0]["train_loss"] == pytest.approx(math.log(1024), abs=0.1)
    assert done.train_loss == lines[-2]["train_loss"]
    assert done.train_loss is not None and done.train_loss < 5
    assert done.val_loss == lines[-1]["val_loss"]
    assert done.val_loss is not None and done.val_loss < 6.5
    assert (done.steps, done.tokens, done.interrupted) == (60, 7680, False)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config is not None and checkpoint.tokenizer is not None
    GPT(checkpoint.config).load_state_dict(checkpoint.state_dict)
    assert not (folder / "resume.pt").exists()
    assert (folder / "train.log").read_text().splitlines()[2].startswith("step:1/60 train_loss:6.9")


def test_losses_are_noted_in_bits_per_byte(config: Path, tmp_path: Path) -> None:
    """Bytes counted on the text of the training stream, of which one epoch is looked at, and of what is validated."""
    folder = tmp_path / "run"
    done = train(recipe_of(config, "train.iterations=2"), folder)
    train_tokens, val_tokens = (read_shard(tmp_path / "shards" / f"x_{split}_000000.bin") for split in ("train", "val"))
    targets = train_tokens[1 : (len(train_tokens) - 1) // 16 * 16 + 1]
    per_token = len(sp1024().decode(targets)) / len(targets)
    for line in metrics(folder)[:-1]:
        assert line["train_bpb"] == pytest.approx(line["train_loss"] / math.log(2) / per_token)
    assert done.val_loss is not None
    bits = 256 * done.val_loss / math.log(2)
    assert (
        done.val_bpb == metrics(folder)[-1]["val_bpb"] == pytest.approx(bits / len(sp1024().decode(val_tokens[1:257])))
    )


def val_loss(recipe: Recipe, folder: Path, document_masks: bool = False) -> float:
    """Of what a run folder beside the shards holds."""
    model = GPT(recipe.model, document_masks=document_masks)
    model.load_state_dict(load_checkpoint(folder).state_dict)
    tokens = np.fromfile(folder.parent / "shards" / "x_val_000000.bin", "<u2")[512 : 512 + 257].astype(np.int64)
    rows, targets = (torch.from_numpy(part).view(16, 16) for part in (tokens[:256], tokens[1:]))
    return model.loss(rows, targets).item()


def test_loops_begin_part_way(config: Path, tmp_path: Path) -> None:
    """Until then the run is that of the model without loops; what is scored at the end has them."""
    loops = ("model.loop_start=1", "model.loop_end=2", "model.loop_count=2")
    plain, late = tmp_path / "plain", tmp_path / "late"
    train(recipe_of(config), plain)
    recipe = recipe_of(config, *loops, "train.loop_from=0.5")
    done = train(recipe, late)
    a, b = ([line["train_loss"] for line in metrics(folder)[:-1]] for folder in (plain, late))
    assert a[:15] == b[:15]
    assert a[15] != b[15]
    assert done.val_loss == pytest.approx(val_loss(recipe, late), rel=1e-6)


def test_validation_scores_what_is_saved(config: Path, tmp_path: Path) -> None:
    recipe = recipe_of(config, "train.iterations=5")
    done = train(recipe, tmp_path / "run")
    assert done.val_loss == pytest.approx(val_loss(recipe, tmp_path / "run"), rel=1e-6)


@pytest.mark.parametrize("masks", [False, True])
def test_document_masks_reach_training_and_validation(config: Path, tmp_path: Path, masks: bool) -> None:
    shards = tmp_path / "shards"
    for path in shards.glob("*.bin"):
        tokens = read_shard(path).copy()
        tokens[::7] = BOS
        write_shard(path, tokens)
    recipe = recipe_of(config, "train.iterations=5", f"train.document_masks={str(masks).lower()}")
    done = train(recipe, tmp_path / "run")
    found = {on: val_loss(recipe, tmp_path / "run", document_masks=on) for on in (False, True)}
    assert done.val_loss == pytest.approx(found[masks], rel=1e-6)
    assert abs(found[True] - found[False]) > 1e-4


def test_micro_batches_do_not_change_the_run(config: Path, tmp_path: Path) -> None:
    whole, parts = (
        train(recipe_of(config, "train.iterations=3", f"train.micro_batches={n}"), tmp_path / str(n)) for n in (1, 8)
    )
    assert whole.train_loss == pytest.approx(parts.train_loss, rel=1e-4)


FORKING = """
import os, sys
import trainer.run.loop
from command import app

for rank in range(int(os.environ["WORLD_SIZE"])):
    if os.fork() == 0:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        app(sys.argv[1:])
statuses = [os.wait()[1] for _ in range(int(os.environ["WORLD_SIZE"]))]
sys.exit(max(statuses))
"""


def forked(config: Path, folder: Path, *arguments: str, processes: int) -> subprocess.Popen[bytes]:
    """A run of several processes that import once and have a process group to be killed by."""
    _, script, *rest = command(config, folder, *arguments)
    forking = Path(script).with_name("forking.py")
    forking.write_text(FORKING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, str(forking), *rest], env={**environment(), **world}, start_new_session=True, **quiet
    )


SHARED = ("train.iterations=6", "train.micro_batches=4", "optim.grad_clip=0.5", "model.num_layers=3")
"""Each process has parts of the batch of its own; matrices do not divide evenly among them."""


def assert_as_one(config: Path, tmp_path: Path, many: Path, processes: int) -> None:
    one = train(recipe_of(config, *SHARED), tmp_path / "one")
    first, second = metrics(tmp_path / "one"), metrics(many)
    assert len(first) == len(second) == 7
    for a, b in zip(first[:-1], second[:-1], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)
    assert second[-1]["val_loss"] == pytest.approx(one.val_loss, rel=1e-3)
    assert f"world_size:{processes} grad_accum_steps:{4 // processes}" in (many / "train.log").read_text()


def test_two_processes_train_as_one(config: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        command(config, tmp_path / "two", *SHARED, processes=2),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["steps"] == 6
    assert_as_one(config, tmp_path, tmp_path / "two", 2)


@pytest.mark.long
def test_four_processes_train_as_one(config: Path, tmp_path: Path) -> None:
    assert forked(config, tmp_path / "four", *SHARED, processes=4).wait() == 0
    assert_as_one(config, tmp_path, tmp_path / "four", 4)


def test_a_killed_run_resumes_to_the_same_end(config: Path, tmp_path: Path) -> None:
    settings = ("train.iterations=120", "train.checkpoint_steps=20")
    whole = train(recipe_of(config, *settings), tmp_path / "whole")
    folder = tmp_path / "killed"
    child = subprocess.Popen(
        command(config, folder, *settings), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while child.poll() is None and not (folder / "resume.pt").exists():
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 20 <= len(metrics_until_torn(folder)) < 120
    again = train(recipe_of(config, *settings), folder, resume=True)
    assert again.train_loss == whole.train_loss
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.long
def test_a_killed_run_of_two_processes_is_resumed_by_two_or_by_one(config: Path, tmp_path: Path) -> None:
    late = (f"data.late_shards={tmp_path / 'late'}", "data.late_from=0.5")  # from step 15 on
    settings = ("train.iterations=30", "train.checkpoint_steps=5", *late)
    folder = tmp_path / "killed"
    assert forked(config, tmp_path / "whole", *settings, processes=2).wait() == 0
    running = forked(config, folder, *settings, processes=2)
    while running.poll() is None and not (folder / "resume.pt").exists():
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert 5 <= len(metrics_until_torn(folder)) < 30
    shutil.copytree(folder, tmp_path / "by one")
    by_one = train(recipe_of(config, *settings), tmp_path / "by one", resume=True)
    assert forked(config, folder, *settings, "--resume", processes=2).wait() == 0
    assert_same_run(tmp_path / "whole", folder)
    assert by_one.val_loss == pytest.approx(metrics(folder)[-1]["val_loss"], rel=1e-2)


def metrics_until_torn(folder: Path) -> list[str]:
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_an_interrupted_run_resumes_to_the_same_end(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recipe_of(config), tmp_path / "whole")
    journal_loss = trainer.run.log.RunLog.loss

    def interrupting(self: trainer.run.log.RunLog, state: State, *values: Any) -> None:
        journal_loss(self, state, *values)
        if state.step == 11:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.run.log.RunLog, "loss", interrupting)
        stopped = train(recipe_of(config), folder)
    assert (stopped.interrupted, stopped.steps) == (True, 12)
    assert not (folder / "model.safetensors").exists()
    again = train(recipe_of(config), folder, resume=True)
    assert (again.interrupted, again.steps) == (False, 30)
    assert again.val_loss == whole.val_loss
    assert_same_run(tmp_path / "whole", folder)


def interrupted(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Outcome:
    """A run that stopped after its first step."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer.run.log.RunLog, "move_bar", lambda *_: signal.raise_signal(signal.SIGTERM))
        return train(recipe_of(config, *overrides), folder)


def test_a_run_is_not_overwritten(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    assert interrupted(config, folder, monkeypatch).steps == 2
    with pytest.raises(CodecError, match="--resume"):
        train(recipe_of(config), folder)
    train(recipe_of(config), folder, resume=True)
    with pytest.raises(CodecError, match="--resume"):
        train(recipe_of(config), folder)
    with pytest.raises(CodecError, match="finished"):
        train(recipe_of(config), folder, resume=True)


def test_only_the_same_recipe_resumes(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    interrupted(config, folder, monkeypatch)
    with pytest.raises(MismatchError, match=r"optim\.matrix_lr: 0\.04 -> 0\.01"):
        train(recipe_of(config, "optim.matrix_lr=0.01"), folder, resume=True)


@pytest.mark.parametrize("damage", ["truncated", "empty", "another file"])
def test_a_broken_checkpoint_is_reported(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder = tmp_path / "run"
    interrupted(config, folder, monkeypatch)
    path = folder / "resume.pt"
    if damage == "another file":
        torch.save({"step": 1}, path)
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    with pytest.raises(FormatError, match=r"resume\.pt: cannot be resumed"):
        train(recipe_of(config), folder, resume=True)


def test_resuming_before_the_first_checkpoint_starts_over(config: Path, tmp_path: Path) -> None:
    whole = train(recipe_of(config), tmp_path / "whole")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "train_loss": 7.0}\n{"st')
    (folder / ".resume.pt.abc").write_text("torn")
    assert train(recipe_of(config), folder, resume=True).train_loss == whole.train_loss
    assert_same_run(tmp_path / "whole", folder)
    assert not (folder / ".resume.pt.abc").exists()


def test_a_run_goes_on_from_the_weights_of_another(config: Path, tmp_path: Path) -> None:
    first = train(recipe_of(config), tmp_path / "first")
    saved = load_checkpoint(tmp_path / "first")
    pack = tmp_path / "first.pack"
    pack.write_bytes(codec.compress(saved.state_dict, config=saved.config, tokenizer=saved.tokenizer))
    for path, exact in ((tmp_path / "first", True), (tmp_path / "first" / "model.safetensors", True), (pack, False)):
        recipe = recipe_of(config, f"train.weights={path}", "train.iterations=1", "train.log_every=1")
        weights = first_weights(recipe, sp1024())
        assert weights is not None
        state = State.start(recipe, World(), weights)
        for name, tensor in state.model.state_dict().items():
            assert torch.allclose(tensor, saved.state_dict[name], atol=0 if exact else 0.05), name
            assert torch.equal(state.average.get(name, tensor), tensor)
        folder = tmp_path / f"after {path.name}"
        fresh = train(recipe_of(config, "train.iterations=1"), tmp_path / f"fresh {path.name}")
        second = train(recipe, folder)
        assert first.train_loss and second.train_loss and fresh.train_loss
        assert second.train_loss < (first.train_loss + fresh.train_loss) / 2


def test_only_weights_of_the_same_model_and_tokenizer_begin_a_run(config: Path, tmp_path: Path) -> None:
    train(recipe_of(config, "train.iterations=1"), tmp_path / "first")
    setting = f"train.weights={tmp_path / 'first'}"
    with pytest.raises(MismatchError, match="of a model of"):
        train(recipe_of(config, setting, "model.num_layers=3"), tmp_path / "other")
    with pytest.raises(FormatError, match="no such file"):
        train(recipe_of(config, setting + "x"), tmp_path / "other")
    (tmp_path / "first" / "tokenizer.model").write_bytes(lossless_tokenizer().model)
    with pytest.raises(MismatchError, match="trained with a tokenizer of"):
        train(recipe_of(config, setting), tmp_path / "other")


def test_a_resumed_run_needs_no_first_weights(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe_of(config, "train.iterations=1"), tmp_path / "first")
    setting = f"train.weights={tmp_path / 'first'}"
    assert interrupted(config, tmp_path / "run", monkeypatch, setting).interrupted
    (tmp_path / "first").rename(tmp_path / "gone")
    assert not train(recipe_of(config, setting), tmp_path / "run", resume=True).interrupted


def test_the_clock_ends_a_run(config: Path, tmp_path: Path) -> None:
    slow_fall = "train.warmdown_steps=50"  # the last step of a busy machine may take as long as several
    overrides = ("train.iterations=0", "train.seconds=1.5", "train.log_every=100000", slow_fall)
    start = time.perf_counter()
    done = train(recipe_of(config, *overrides), tmp_path / "run")
    assert 1.5 <= done.seconds < 2.5
    assert done.seconds <= time.perf_counter() - start
    assert done.steps > 10
    assert metrics(tmp_path / "run")[-2]["lr_scale"] < 0.2


def test_shapes_of_a_run_change_and_a_resumed_one_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short rows and small batches first; the tokens are those of full rows, in the same order."""
    schedules = ("train.window_schedule=[[0, 4], [0.4, 16]]", "train.batch_schedule=[[0, 64], [0.2, 128]]")
    whole = train(recipe_of(config, *schedules), tmp_path / "whole")
    assert whole.tokens == 6 * 64 + 24 * 128
    assert [line["tokens"] for line in metrics(tmp_path / "whole")[4:8]] == [320, 384, 512, 640]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.run.log.RunLog, "move_bar", stop_after(4))
        assert train(recipe_of(config, *schedules), folder).steps == 5
    train(recipe_of(config, *schedules), folder, resume=True)
    assert_same_run(tmp_path / "whole", folder)


def stop_after(step: int) -> Callable[[trainer.run.log.RunLog, State], None]:
    def move_bar(_: trainer.run.log.RunLog, state: State) -> None:
        if state.step == step:
            signal.raise_signal(signal.SIGTERM)

    return move_bar


def test_late_rows_come_at_the_end_and_a_resumed_run_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 steps on the shards and 9 on the late ones, no row of either twice; the stop is two steps after the switch."""
    settings = (f"data.late_shards={tmp_path / 'late'}", "data.late_from=0.7", "train.batch_tokens=64")
    seen: list[list[int]] = []
    take = trainer.run.step.take

    def seeing(*arguments: Any) -> trainer.run.step.Parts:
        parts = take(*arguments)
        for inputs, targets in parts:
            seen.extend(torch.cat([inputs, targets[:, -1:]], 1).tolist())
        return parts

    monkeypatch.setattr(trainer.run.loop, "take", seeing)
    train(recipe_of(config, *settings), tmp_path / "whole")
    streams = [read_shard(tmp_path / folder / "x_train_000000.bin").tolist() for folder in ("shards", "late")]
    rows = [{tuple(stream[n : n + 17]) for n in range(0, len(stream) - 16, 16)} for stream in streams]
    for part, of in ((seen[: 21 * 4], rows[0]), (seen[21 * 4 :], rows[1])):
        assert {tuple(row) for row in part} <= of
    assert len({tuple(row) for row in seen[21 * 4 :]}) == 9 * 4
    per_token = len(sp1024().decode(np.array(streams[1][1:785]))) / 784
    line = metrics(tmp_path / "whole")[-2]
    assert line["train_bpb"] == pytest.approx(line["train_loss"] / math.log(2) / per_token)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.run.log.RunLog, "move_bar", stop_after(22))
        assert train(recipe_of(config, *settings), tmp_path / "run").steps == 23
    train(recipe_of(config, *settings), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert [f"{n / len(s):.2f}" for n, s in zip((21 * 64, 9 * 64), streams, strict=True)] == ["0.34", "0.72"]
    assert "epochs:0.34 late_epochs:0.72\n" in (tmp_path / "run" / "train.log").read_text()


def test_late_shards_that_do_not_fit_are_reported(config: Path, tmp_path: Path) -> None:
    recipe, late = recipe_of(config, f"data.late_shards={tmp_path / 'late'}"), tmp_path / "late"
    (late / "tokenizer.model").write_bytes(lossless_tokenizer().model)
    with pytest.raises(MismatchError, match=r"another tokenizer .512 tokens. than data.shards .1024 tokens."):
        train(recipe, tmp_path / "a")
    (late / "tokenizer.model").unlink()
    with pytest.raises(FormatError, match=r"late/tokenizer\.model: No such file"):
        train(recipe, tmp_path / "b")
    named = recipe_of(config, f"data.late_shards={late}", f"data.tokenizer={tmp_path / 'shards' / 'tokenizer.model'}")
    (late / "x_train_000000.bin").unlink()
    with pytest.raises(FormatError, match=r"late: no shards \*_train_\*"):
        train(named, tmp_path / "c")


def test_a_mixture_is_read_by_its_weights_and_a_resumed_run_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    setting = f'data.mixture=[["{folder}", 1], ["{tmp_path / "late"}", 3.5]]'
    settings = (setting, "train.val_tokens=0")
    train(recipe_of(config, *settings), tmp_path / "whole")
    train(recipe_of(config, "train.val_tokens=0"), tmp_path / "alone")
    losses = [[line["train_loss"] for line in metrics(tmp_path / name)] for name in ("whole", "alone")]
    assert losses[0] != losses[1]
    assert interrupted(config, tmp_path / "run", monkeypatch, *settings).interrupted
    train(recipe_of(config, *settings), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    forked(config, tmp_path / "two", *settings, processes=2).wait()
    two = [line["train_loss"] for line in metrics(tmp_path / "two")]
    assert two == pytest.approx(losses[0], abs=1e-3)


def test_the_plain_mean_of_the_last_weights_is_saved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.ema_decay=0", "train.swa_every=5", "train.swa_fraction=0.4")
    seen = []

    def keep(_: trainer.run.log.RunLog, state: State) -> None:
        seen.append({name: tensor.clone() for name, tensor in state.model.state_dict().items()})

    with monkeypatch.context() as patch:
        patch.setattr(trainer.run.log.RunLog, "move_bar", keep)
        train(recipe_of(config, *settings), tmp_path / "whole")
    for name, tensor in load_checkpoint(tmp_path / "whole").state_dict.items():
        expected = torch.stack([seen[step - 1][name] for step in (20, 25, 30)]).mean(0)
        torch.testing.assert_close(tensor, expected)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.run.log.RunLog, "move_bar", stop_after(22))
        train(recipe_of(config, *settings), tmp_path / "run")
    train(recipe_of(config, *settings), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_divergence_ends_a_run(config: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="diverged"):
        train(recipe_of(config, "optim.embed_lr=1e30", "optim.vector_lr=1e30"), tmp_path / "run")


def test_data_that_does_not_fit_is_reported(config: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="vocab_size is 512"):
        train(recipe_of(config, "model.vocab_size=512"), tmp_path / "a")
    with pytest.raises(CodecError, match="8 rows"):
        train(recipe_of(config, "train.micro_batches=3"), tmp_path / "b")
    with pytest.raises(FormatError, match="at least 17"):
        train(recipe_of(config, "train.val_tokens=10", "train.iterations=1"), tmp_path / "c")
    write_shard(tmp_path / "shards" / "x_train_000000.bin", np.full(100, BOS))
    with pytest.raises(FormatError, match="stand for 0 bytes"):
        train(recipe_of(config), tmp_path / "d")


@pytest.mark.gpu
def test_a_gpu_trains_as_a_cpu_does(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(config, "train.iterations=20", "train.prime_steps=2", "train.checkpoint_steps=7")
    on_gpu = train(recipe, tmp_path / "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = train(recipe, tmp_path / "cpu")
    assert on_gpu.val_loss == pytest.approx(on_cpu.val_loss, rel=0.03)
    losses = [[line["train_loss"] for line in metrics(tmp_path / where)[:-1]] for where in ("gpu", "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_weights_that_are_not_finite_replace_no_checkpoint(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: float
) -> None:
    """Between two looks at the loss, a step breaks a weight; a checkpoint by steps is due before the next look."""
    plain = trainer.run.loop.descend

    def descend(state: State, *arguments: Any) -> torch.Tensor:
        found = plain(state, *arguments)
        if state.step == 12:
            with torch.no_grad():
                next(iter(state.model.parameters()))[0] = poison
        return found

    monkeypatch.setattr(trainer.run.loop, "descend", descend)
    with pytest.raises(CheckFailed, match=r"diverged: .* not finite at step 15; the checkpoint before stays"):
        train(recipe_of(config, "train.log_every=100", "train.checkpoint_steps=5"), tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
    assert saved["step"] == 10
    assert all(bool(torch.isfinite(t).all()) for t in saved["model"].values())


def test_weights_that_are_not_finite_end_no_run(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step's loss is that of the weights before: the model is looked at before it replaces a checkpoint."""
    plain = trainer.run.loop.descend

    def descend(state: State, *arguments: Any) -> torch.Tensor:
        found = plain(state, *arguments)
        if state.step == 29:
            with torch.no_grad():
                next(iter(state.model.parameters()))[0] = math.nan
        return found

    monkeypatch.setattr(trainer.run.loop, "descend", descend)
    with pytest.raises(CheckFailed, match=r"diverged: .* not finite at step 30"):
        train(recipe_of(config, "train.val_tokens=0", "train.checkpoint_steps=20"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["step"] == 20

"""Training on two hosts that meet at a rendezvous: two agents of torchrun on this machine, of which one is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.helpers import ROOT
from tests.trainer.run.test_loop import assert_same_run, command, config, environment, metrics

__all__ = ["config"]

STEPS = 300


def agent(port: int, arguments: list[str]) -> "subprocess.Popen[bytes]":
    """An agent as on a host of its own, in a session of its own, so that all of the host can be killed at once."""
    launch = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=test"]
    place = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-conf=timeout=300"]
    program = [sys.executable, "-m", "torch.distributed.run", *launch, *place]
    # An agent that stays keeps its rendezvous of the first round, which one that comes new would wait for in vain.
    own_store = {**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [*program, *arguments],
        cwd=ROOT,
        env=own_store,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill(host: "subprocess.Popen[bytes]") -> None:
    """End an agent and its processes, as a host ends whose power goes off."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(host.pid)], capture_output=True, text=True, check=False
    )
    for number in (host.pid, *map(int, children.stdout.split())):  # torchrun's workers have sessions of their own
        os.kill(number, signal.SIGKILL)
    host.wait()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_host_that_is_lost_and_comes_back(config: Path, tmp_path: Path) -> None:
    """The other host's process is started again, both go on from the last checkpoint, and the run is the same."""
    overrides = (f"train.iterations={STEPS}", "train.checkpoint_steps=10")
    subprocess.run(
        command(config, tmp_path / "one", *overrides, processes=2),
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [*command(config, tmp_path / "two", *overrides)[1:], "--resume"]
    first = agent(port, arguments)
    time.sleep(2)  # the first agent keeps the rendezvous
    second = agent(port, arguments)
    try:
        while not (tmp_path / "two" / "resume.pt").exists():
            assert first.poll() is None and second.poll() is None
            time.sleep(0.02)
        kill(second)
        reached = len(metrics(tmp_path / "two"))
        assert 10 <= reached < STEPS
        second = agent(port, arguments)
        for host in (first, second):
            said = host.communicate(timeout=600)[1].decode()
            assert host.returncode == 0, said
    finally:
        for host in (first, second):
            if host.poll() is None:
                kill(host)
    assert_same_run(tmp_path / "one", tmp_path / "two")

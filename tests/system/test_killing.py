"""Encoding, appending and decoding under SIGKILL."""

import json
import subprocess
import sys

import pytest

from tests.support.helpers import ROOT


@pytest.mark.timeout(1200)
def test_a_kill_at_any_moment_leaves_nothing_wrong(tmp_path):
    command = [sys.executable, "-m", "tests.support.killing", str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    kills = json.loads(told.stdout)
    print(kills)
    assert all(count >= 2 for count in kills.values()), kills

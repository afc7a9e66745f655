"""The examples run as their first lines say, only shorter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["spikingjelly_vgg", "snntorch_convnet"])
def test_networks_of_other_frameworks_reach_both_engines(name, tmp_path, lava):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--epochs", "1", "--samples", "4", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Loihi, engine lava" in done.stdout
    assert "runs it (float64): agrees, 0 differing spikes" in done.stdout

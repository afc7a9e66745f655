"""The examples run as their first lines say, only shorter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["spikingjelly_vgg --integers 1", "snntorch_convnet"])
def test_networks_of_other_frameworks_reach_both_engines(name, tmp_path, lava):
    script, *options = name.split()
    command = [
        sys.executable,
        EXAMPLES / f"{script}.py",
        *options,
        "--epochs",
        "1",
        "--samples",
        "4",
        "--out",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Loihi, engine lava" in done.stdout
    assert "runs it (float64): agrees, 0 differing spikes" in done.stdout
    if options:
        trained = re.search(r"^in integers: test accuracy (\S+)", done.stdout, re.MULTILINE)
        assert f"Loihi, engine fixed: accuracy {trained[1]} on" in done.stdout

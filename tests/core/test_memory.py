"""Memory that tensors free: kept for the next ones."""

import os
import subprocess
import sys

import pytest

# Page faults of ten large tensors, one after the other, after five others.
SCRIPT = """
import resource
import numpy as np
from spikeport.core.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(5):
    np.ones({size}, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones({size}, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep, **settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    script = SCRIPT.format(keep=keep, size=9 * 2**20)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | settings)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_freed_memory_is_not_asked_for_again():
    kept, handed_back = page_faults(True), page_faults(False)
    assert 10 * kept < handed_back
    # A setting of one's own is left alone.
    assert 10 * kept < page_faults(True, MALLOC_TRIM_THRESHOLD_="131072")

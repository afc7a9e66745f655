"""Threads: any number gives the same result, also in a forked process and without OpenMP."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from in_one import InOne
from torch import nn

from spikeport.core import LIF, lif


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


IN_ONE = InOne(nn.BatchNorm2d(6), LIF(time_steps=4))


@pytest.mark.parametrize("layer", [LIF(time_steps=4), LIF(time_steps=9), IN_ONE])
def test_the_number_of_threads_does_not_change_a_bit(kernel, threads, layer):
    x = torch.randn(36, 6, 50, 33)
    results = []
    for number in (1, 2, 3, 7):
        threads(number)
        leaf = x.clone().requires_grad_()
        spikes = layer(leaf)
        spikes.backward(torch.cos(x))
        results.append((spikes.detach(), leaf.grad))
    for spikes, grad in results[1:]:
        assert torch.equal(spikes, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_a_forked_child_runs_and_agrees(kernel, threads):
    threads(2)
    x = torch.randn(4, 100_000)
    expected = lif(x)[0].numpy()
    child = os.fork()
    if child == 0:  # only NumPy and our own threads from here: torch's pool died with the fork
        from spikeport.core import kernels
        from spikeport.core.kernels import cpu

        spikes = torch.empty_like(x)
        setting = kernels.Neuron().setting(4, False)
        cpu.lif(0, x, setting, spikes=spikes)
        os._exit(0 if (spikes.numpy() == expected).all() else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_runs_without_an_openmp_pool(kernel):
    """The library in a process that never loads torch: its own threads do the work."""
    from spikeport.core.kernels import cpu

    script = f"""
        import ctypes, struct
        library = ctypes.CDLL({cpu.library()._name!r})
        x = (ctypes.c_float * 400000)(*[1.5] * 400000)
        spikes = (ctypes.c_float * 400000)()
        numbers = struct.pack("3q5d6i", 4, 100000, 100000, 0.5, 0.5, 1.0, 0.0, 2.0, 1, 0, 0, 0, 0, 3)
        pointers = [ctypes.addressof(x), 0, 0, 0, 0, 0, ctypes.addressof(spikes)] + [0] * 5
        library.spikeport_lif(numbers + struct.pack("12Q", *pointers), 0)
        # h = 0.75, 1.125: every second step fires
        assert [sum(spikes[i : i + 100000]) for i in range(0, 400000, 100000)] == [0, 100000, 0, 100000]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)

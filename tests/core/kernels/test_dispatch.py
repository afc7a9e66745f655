"""Who runs: the kernels, or the reference with one warning; and what neither takes."""

import ctypes
import re
import sys
import warnings

import pytest
import torch

from spikeport.core import LIF, SpikeportError, TimeMean, kernels, lif
from spikeport.core.kernels import cpu, cuda, cuda_compile, dispatch

NAN = float("nan")


@pytest.fixture
def calls(monkeypatch):
    """The names of the operators that ran."""
    seen = []
    original = cpu.lif
    monkeypatch.setattr(cpu, "lif", lambda *a, **k: (seen.append("kernel"), original(*a, **k)))
    return seen


def test_variable_forces_the_reference(kernel, monkeypatch, calls):
    x = torch.randn(4, 10)
    with_kernel = lif(x)[0]
    monkeypatch.setenv("SPIKEPORT_KERNELS", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = lif(x)[0]
    assert calls == ["kernel"]
    assert torch.equal(with_kernel, without)


def test_variable_takes_two_values(monkeypatch):
    monkeypatch.setenv("SPIKEPORT_KERNELS", "triton")
    with pytest.raises(SpikeportError, match="SPIKEPORT_KERNELS.*auto or reference"):
        lif(torch.randn(4, 10))


def test_without_the_extension_the_reference_runs_and_says_so_once(monkeypatch, calls):
    expected = lif(torch.ones(4, 3))[0]
    calls.clear()
    monkeypatch.setattr(cpu, "library", lambda: None)
    dispatch._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler"):
        spikes = lif(torch.ones(4, 3))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lif(torch.ones(4, 3))
    assert not calls
    assert torch.equal(spikes, expected)
    dispatch._warn.cache_clear()


def test_without_cuda_core_the_gpu_is_not_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    cuda.missing.cache_clear()
    dispatch._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="cuda-core"):
        assert not kernels.kernels_usable("cuda", torch.float32)
    cuda.missing.cache_clear()
    dispatch._warn.cache_clear()


def test_an_old_gpu_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (6, 1))
    cuda.missing.cache_clear()
    assert "6.1" in cuda.missing()
    assert cuda_compile.missing() == ""
    cuda.missing.cache_clear()


def test_a_driver_older_than_the_compiler_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (9, 0))
    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", lambda: (0, 13, 0))
    for version, told in ((12040, "the driver is one of CUDA 12, the compiler .NVRTC. of CUDA 13"), (13020, "^$")):
        monkeypatch.setattr("cuda.bindings.driver.cuDriverGetVersion", lambda version=version: (0, version))
        cuda.missing.cache_clear()
        assert re.search(told, cuda.missing())
    cuda.missing.cache_clear()


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_take_the_reference_quietly(device):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.kernels_usable(device, torch.float32)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), {}, "floating point"),
        (torch.zeros(4), {}, r"\[T, N"),
        (torch.zeros(()), {"time_steps": 4}, r"\[N, "),
        (torch.zeros(0, 3), {}, "0 time steps"),
        (torch.zeros(3), {"time_steps": 0}, "time_steps is 0; a whole number from 1"),
        (torch.zeros(4, 3), {"tau": 0.5}, "tau is 0.5"),
        (torch.zeros(4, 3), {"tau": NAN}, "tau is nan"),
        (torch.zeros(4, 3), {"v_threshold": 0.0}, "not above v_reset"),
        (torch.zeros(4, 3), {"v_threshold": NAN}, "not above v_reset"),
        (torch.zeros(4, 3), {"state": torch.zeros(4)}, "state has shape"),
        (torch.zeros(4, 3), {"state": torch.zeros(3, device="meta")}, "state is on meta"),
        (torch.zeros(4, 3), {"surrogate": "relu"}, "unknown surrogate"),
        (torch.zeros(4, 3), {"alpha": NAN}, "alpha is nan"),
        (torch.zeros(4, 3), {"alpha": -1.0}, r"alpha is -1\.0"),
        (torch.zeros(4, 3), {"alpha": "2"}, "alpha is '2'"),
        (torch.zeros(4, 3), {"v_reset": -float("inf")}, "v_reset is -inf"),
    ],
)
def test_bad_input_is_refused_before_a_kernel_runs(calls, x, options, message):
    with pytest.raises(SpikeportError, match=message):
        lif(x, **options)
    assert not calls


def test_a_batch_that_is_no_multiple_of_the_steps_is_refused(calls):
    with pytest.raises(SpikeportError, match="not a multiple of 4"):
        LIF(time_steps=4)(torch.zeros(6, 3))
    assert not calls


@pytest.mark.parametrize("steps", [0, -1, 4.0, None])
@pytest.mark.parametrize("layer", [LIF, TimeMean])
def test_a_layer_without_whole_steps_is_refused(layer, steps):
    with pytest.raises(SpikeportError, match="time_steps is"):
        layer(time_steps=steps)


def test_the_python_and_the_c_structures_agree():
    # 14 numbers and 12 pointers in LifCall; a member too many or of another size would shift all that follow.
    assert ctypes.sizeof(cpu.Shape) == 8 * 8 + 6 * 4
    assert ctypes.sizeof(cpu.LifCall) == ctypes.sizeof(cpu.Shape) + 12 * 8
    assert cpu.library().spikeport_size_of_norm_call() == ctypes.sizeof(cpu.NormCall)

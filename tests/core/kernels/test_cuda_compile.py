"""The CUDA source compiles for every generation we name; NVRTC needs no GPU for that."""

import pytest
import torch

from spikeport.core import SpikeportError
from spikeport.core.kernels import SURROGATE_CODES, Setting, cuda_compile, neuron_parameters
from spikeport.core.kernels.cuda_launches import lif_launches

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def setting(steps, surrogate="atan", constant=False):
    return Setting(steps, constant, neuron_parameters(2.0, 1.0, 0.0, 2.0), SURROGATE_CODES[surrogate])


def launches(code, dtype, surrogate, steps):
    x = torch.zeros(steps, 64, dtype=dtype)
    like, state = torch.zeros_like(x), torch.zeros(64)
    tensors = {"spikes": like, "grad_spikes": like, "grad_x": like, "grad2_x": like, "grad2_spikes": like}
    tensors |= {"state": None, "membrane": None, "grad_membrane": None, "grad_state": None}
    tensors |= {"grad2_state": None, "grad2_membrane": state}
    return lif_launches(code, x, setting(steps, surrogate), tensors)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("code", [0, 1, 2], ids=["forward", "backward", "double backward"])
def test_lif_compiles(code, architecture, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for dtype in DTYPES:
        for steps in (4, 33):
            for launch in launches(code, dtype, "sigmoid", steps):
                compiled = cuda_compile.compile_kernel(launch.source, launch.expression, architecture)
                assert compiled.code[:4] == b"\x7fELF"
                assert compiled.symbol


@pytest.mark.parametrize("surrogate", list(SURROGATE_CODES))
def test_every_surrogate_compiles_backward(surrogate):
    for code in (1, 2):
        for launch in launches(code, torch.float32, surrogate, 4):
            assert cuda_compile.compile_kernel(launch.source, launch.expression, "sm_90").code


NORM = (
    "norm_moments<float, 4, false>",
    "norm_finish_moments<float>",
    "norm_forward<float, 4, 4, false>",
    "norm_forward<__half, 8, 4, true>",
    "norm_reduce<float, 4, 4, 0, false>",
    "norm_reduce<__nv_bfloat16, 8, 4, 1, true>",
    "norm_finish_sums<float>",
    "norm_apply<float, 4, 4, 0, false>",
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_norm_and_lif_in_one_compiles(architecture):
    for expression in NORM:
        assert cuda_compile.compile_kernel("norm_lif.cu", expression, architecture).code[:4] == b"\x7fELF"


def test_a_kernel_that_is_not_there_is_named():
    with pytest.raises(SpikeportError, match="lif_sideways"):
        cuda_compile.compile_kernel("lif.cu", "lif_sideways<float>", "sm_90")

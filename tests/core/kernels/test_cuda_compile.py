"""NVRTC compiles every CUDA kernel for the architectures in use, without a GPU, and the result is cached."""

import dataclasses
import io
import itertools
import os

import pytest

from spikeport.core import SpikeportError
from spikeport.core.kernels import cuda_compile

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
LIF = (
    *(
        f"lif_forward<{t}>"
        for t in ("float, 4, 4", "__half, 8, 4", "__nv_bfloat16, 4, 16", "float, 4, 0", "double, 2, 4")
    ),
    *(f"lif_backward<float, 4, 4, {surrogate}, false>" for surrogate in range(5)),
    "lif_backward<__nv_bfloat16, 2, 16, 0, false>",
    "lif_backward<__half, 4, 0, 0, true>",
    "lif_double_backward<float, 1, false>",
)
NORM = (
    "norm_moments<float, 4, false>",
    "norm_moments<__half, 8, true>",
    "norm_finish_moments<float>",
    "norm_factors<float>",
    "norm_forward<__nv_bfloat16, 8, 4, true, false>",
    "norm_forward<__half, 4, 4, true, true>",
    "norm_reduce<float, 4, 4, 0, false, false>",
    "norm_reduce<__nv_bfloat16, 4, 4, 0, true, true>",
    "norm_finish_sums<float>",
    "norm_apply<float, 2, 16, 0, true, false>",
    "norm_apply<double, 1, 3, 4, true, true>",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "spikeport" / "kernels"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(architecture):
    for source, expression in (*itertools.product(["lif.cu"], LIF), *itertools.product(["norm_lif.cu"], NORM)):
        compiled = cuda_compile.compile_kernel(source, expression, architecture)
        assert compiled.code[:4] == b"\x7fELF"
        assert expression.split("<")[0].encode() in compiled.symbol
        assert compiled.symbol in compiled.code


def ptx(options):
    """lif_forward's PTX; straight from NVRTC, since cuda-core asks the driver before it makes any."""
    from cuda.bindings import nvrtc

    def check(result):
        assert result[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS
        return result[1] if len(result) > 1 else None

    code = (cuda_compile.FOLDER / "lif.cu").read_bytes()
    program = check(nvrtc.nvrtcCreateProgram(code, b"lif.cu", 0, [], []))
    check(nvrtc.nvrtcAddNameExpression(program, LIF[0].encode()))
    check(nvrtc.nvrtcCompileProgram(program, len(options), options))
    text = b" " * check(nvrtc.nvrtcGetPTXSize(program))
    check(nvrtc.nvrtcGetPTX(program, text))
    return text.decode()


def test_products_and_sums_are_rounded_one_by_one():
    """The forward kernel multiplies and adds in float32 and nowhere contracts the two."""
    options = [o for o in cuda_compile.options("lif.cu", "compute_90").as_bytes("nvrtc") if b"fmad" not in o]
    own = cuda_compile.options("lif.cu", "compute_90").as_bytes("nvrtc")
    assert "fma.rn.f32" in ptx(options)  # what the option is there to prevent
    assert "fma.rn.f32" not in ptx(own)
    assert "mul.rn.f32" in ptx(own) or "mul.f32" in ptx(own)


@pytest.mark.parametrize(
    ("source", "expression"),
    [
        ("lif.cu", "lif_forward<float, 4, 16>"),
        ("lif.cu", "lif_backward<float, 2, 16, 0, false>"),
        ("lif.cu", "lif_backward<__nv_bfloat16, 8, 4, 0, false>"),
        ("norm_lif.cu", "norm_reduce<float, 2, 16, 0, false, false>"),
        ("norm_lif.cu", "norm_apply<__nv_bfloat16, 8, 4, 0, true, false>"),
        ("norm_lif.cu", "norm_forward<float, 4, 4, true, true>"),
        ("norm_lif.cu", "norm_reduce<float, 4, 4, 0, true, true>"),
        ("norm_lif.cu", "norm_reduce<__nv_bfloat16, 2, 16, 0, true, true>"),
        ("norm_lif.cu", "norm_apply<float, 4, 4, 0, true, true>"),
    ],
)
def test_the_membranes_stay_in_registers(source, expression):
    """At the widths cuda_launches.py chooses, the assembler spills nothing to memory."""
    from cuda.core import Program

    options, log = cuda_compile.options(source, "sm_90"), io.StringIO()
    options.ptxas_options = "-v"
    program = Program((cuda_compile.FOLDER / source).read_text(), "c++", options)
    program.compile("cubin", name_expressions=(expression,), logs=log)
    assert "0 bytes spill stores" in log.getvalue()


def test_the_second_use_reads_the_cache(cache, monkeypatch):
    first = cuda_compile.cubin("lif.cu", LIF[0], "sm_90")
    (file,) = cache.iterdir()
    monkeypatch.setattr(cuda_compile, "compile_kernel", lambda *a: pytest.fail("compiled again"))
    assert cuda_compile.cubin("lif.cu", LIF[0], "sm_90") == first
    assert file.read_bytes().endswith(first.code)


def test_another_architecture_source_version_or_option_is_another_entry(cache, monkeypatch):
    cuda_compile.cubin("lif.cu", LIF[0], "sm_90")
    cuda_compile.cubin("lif.cu", LIF[0], "sm_80")
    monkeypatch.setattr(cuda_compile, "_version", lambda package: "0")
    cuda_compile._fingerprint.cache_clear()
    cuda_compile.cubin("lif.cu", LIF[0], "sm_90")
    cuda_compile._fingerprint.cache_clear()
    given = cuda_compile.options
    monkeypatch.setattr(cuda_compile, "options", lambda *a: dataclasses.replace(given(*a), fma=True))
    cuda_compile.cubin("lif.cu", LIF[0], "sm_80")
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_entry_is_compiled_again(cache):
    first = cuda_compile.cubin("lif.cu", LIF[0], "sm_90")
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert cuda_compile.cubin("lif.cu", LIF[0], "sm_90") == first
    assert file.read_bytes().endswith(first.code)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cuda_compile.cubin("lif.cu", LIF[0], "sm_90").code


def test_without_a_home_there_is_no_cache_and_no_obstacle(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # nobody: in no list of users
    assert cuda_compile.cubin("lif.cu", LIF[0], "sm_90").code


def test_a_kernel_that_does_not_compile_is_named(cache):
    with pytest.raises(SpikeportError, match=r"lif_forward<float, 3, 4> for sm_90"):
        cuda_compile.cubin("lif.cu", "lif_forward<float, 3, 4>", "sm_90")
    assert not cache.exists() or not list(cache.iterdir())

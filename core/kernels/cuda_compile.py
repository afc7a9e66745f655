"""CUDA C++ to machine code at first use: NVRTC through cuda-core, cached on disk; no CUDA toolkit, no GPU needed."""

import contextlib
import functools
import hashlib
import os
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from spikeport.core.errors import SpikeportError
from spikeport.core.files import replacing

FOLDER = Path(__file__).parent
SOURCES = ("lif.cu", "norm_lif.cu", "lif_step.h", "elements.cuh")
PACKAGES = ("cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime")
REMEDY = "pip install 'spikeport[cuda]' (cuda-core, nvidia-cuda-runtime)"


class Cubin(NamedTuple):
    """Machine code of one kernel and the kernel's mangled name in it."""

    code: bytes
    symbol: bytes


def missing() -> str:
    """What keeps NVRTC from compiling here; empty where nothing does."""
    try:
        from cuda.core import LaunchConfig, ObjectCode, Stream, launch  # noqa: F401

        if not hasattr(ObjectCode, "symbol_mapping") or _version("cuda-core").startswith("0.6."):
            raise SpikeportError(f"cuda-core {_version('cuda-core')} is too old, 0.7 is needed")
        header_folder()
    except (ImportError, SpikeportError) as error:
        return f"{error}; {REMEDY}"
    return ""


def cubin(source: str, expression: str, architecture: str) -> Cubin:
    """The kernel ``expression``, such as ``lif_forward<float, 4, 4>``, of ``source`` for ``architecture`` (sm_90).

    Raises:
        SpikeportError: the compiler refused it.
    """
    try:
        folder = cache_folder()
    except RuntimeError:  # nobody's home
        return compile_kernel(source, expression, architecture)
    path = folder / f"{_key(source, expression, architecture)}.cubin"
    cached = _read(path)
    if cached:
        return cached
    result = compile_kernel(source, expression, architecture)
    # A cache that cannot be written costs the next process a second, nothing else.
    with contextlib.suppress(OSError), replacing(path) as temporary:
        digest = hashlib.sha256(result.code).hexdigest().encode()
        temporary.write_bytes(b"\n".join((digest, result.symbol, result.code)))
    return result


def _read(path: Path) -> Cubin | None:
    """The cached kernel; None where there is none or its file is damaged."""
    try:
        digest, symbol, code = path.read_bytes().split(b"\n", 2)
    except (OSError, ValueError):
        return None
    return Cubin(code, symbol) if hashlib.sha256(code).hexdigest().encode() == digest else None


def compile_kernel(source: str, expression: str, architecture: str) -> Cubin:
    """As ``cubin``, without the cache."""
    from cuda.core import Program

    try:
        program = Program((FOLDER / source).read_text(encoding="utf-8"), "c++", options(source, architecture))
        compiled = program.compile("cubin", name_expressions=(expression,))
    except Exception as error:  # cuda-core's own kinds
        raise SpikeportError(f"NVRTC cannot compile {expression} for {architecture}: {error}") from error
    return Cubin(bytes(compiled.code), compiled.symbol_mapping[expression])


def options(source: str, architecture: str) -> Any:
    """cuda-core's ProgramOptions."""
    from cuda.core import ProgramOptions

    return ProgramOptions(
        name=source,
        std="c++17",
        arch=architecture,
        fma=False,  # one rounding for every product and sum, as on the CPU
        include_path=[str(FOLDER), header_folder()],
    )


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/spikeport/kernels, ~/.cache where the variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikeport" / "kernels"


@functools.cache
def header_folder() -> str:
    """Where cuda_fp16.h lies."""
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if folder is None:
        raise SpikeportError("cuda_fp16.h was not found")
    return folder


def _key(source: str, expression: str, architecture: str) -> str:
    flags = [o for o in options(source, architecture).as_bytes("nvrtc") if b"include-path" not in o]
    parts = (_fingerprint(), source, expression, architecture, repr(flags))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _fingerprint() -> str:
    """Of the sources and of the versions of the compiler."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    for name in PACKAGES:
        digest.update(f"{name} {_version(name)}".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

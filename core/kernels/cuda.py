"""The CUDA kernels: compiled at first use, launched on torch's current stream."""

import functools
import threading
from typing import Any

import torch
from torch import Tensor

from spikeport.core.kernels import cuda_compile
from spikeport.core.kernels.cuda_launches import Launch, lif_launches, moments_launches, norm_launches
from spikeport.core.kernels.parameters import Norm, Setting

OLDEST = (7, 5)  # compute capability the compiler still knows
_thread = threading.local()


@functools.cache
def missing() -> str:
    """What keeps the kernels from running on a GPU; empty where nothing does."""
    absent = cuda_compile.missing()
    if absent:
        return absent
    if torch.version.hip or not torch.cuda.is_available():
        return "torch sees no GPU of NVIDIA"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return f"this GPU has compute capability {capability[0]}.{capability[1]}, the kernels need {OLDEST}"
    from cuda.bindings import driver, nvrtc

    # An older driver than the compiler's CUDA, which is enough for a torch of an older CUDA.
    (_, known), (_, major, _) = driver.cuDriverGetVersion(), nvrtc.nvrtcVersion()
    if known // 1000 < major:
        return f"the driver is one of CUDA {known // 1000}, the compiler (NVRTC) of CUDA {major}; update the driver"
    return ""


def lif(code: int, x: Tensor, setting: Setting, **tensors: Tensor | None) -> None:
    """Runs pass ``code`` (0 forward, 1 backward, 2 double backward) on tensors named as in calls.h."""
    _queue(lif_launches(code, x, setting, tensors), x.device)


def norm_moments(x: Tensor, setting: Setting, norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Writes mean and biased variance of every channel of x."""
    _queue(moments_launches(x, setting, norm, mean, variance), x.device)


def norm(code: int, x: Tensor, setting: Setting, norm: Norm, **tensors: Tensor | None) -> None:
    """Runs pass ``code`` (0 forward, 1 backward) of BatchNorm and LIF."""
    _queue(norm_launches(code, x, setting, norm, tensors), x.device)


def _queue(launches: list[Launch], device: torch.device) -> None:
    from cuda.core import launch

    # The allocator orders scratch memory by stream, as the launches: it may be freed once they are queued.
    with torch.cuda.device(device):
        number = torch.cuda.current_device()
        _bind(number)
        stream = _stream(torch.cuda.current_stream().cuda_stream)
        for item in launches:
            kernel = _kernel(item.source, item.expression, number)
            launch(stream, _config(item.grid, item.block), kernel, *item.arguments)


def _bind(device: int) -> None:
    """Makes the context of ``device`` this thread's: torch leaves that to the runtime's first call in a thread, and a
    launch through the driver is none; backward passes run in threads of their own."""
    if getattr(_thread, "device", None) != device:
        from cuda.core import Device

        Device(device).set_current()
        _thread.device = device


@functools.lru_cache(1024)
def _config(grid: tuple[int, int], block: int) -> Any:
    """To make one takes most of a launch's time."""
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=block)


@functools.cache
def _stream(handle: int) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(handle)


@functools.cache
def _kernel(source: str, expression: str, device: int) -> Any:
    """The kernel, loaded into the current context, which is that of ``device``."""
    from cuda.core import ObjectCode

    major, minor = torch.cuda.get_device_capability(device)
    compiled = cuda_compile.cubin(source, expression, f"sm_{major}{minor}")
    module = ObjectCode.from_cubin(compiled.code, symbol_mapping={expression: compiled.symbol})
    return module.get_kernel(expression)

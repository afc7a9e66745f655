"""spikeport: a PyTorch CNN, its spiking twin, and what both cost on neuromorphic hardware."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikeport.core import LIF, convert, load_run, train
    from spikeport.export import to_nir, to_onnx
    from spikeport.profiling import report
    from spikeport.targets import check, compile, simulate

__version__ = version("spikeport")

#: Public name -> its module, imported on first use: `spikeport --help` should not wait for torch.
_HOME = {
    "LIF": "spikeport.core",
    "convert": "spikeport.core",
    "train": "spikeport.core",
    "load_run": "spikeport.core",
    "to_onnx": "spikeport.export",
    "to_nir": "spikeport.export",
    "check": "spikeport.targets",
    "compile": "spikeport.targets",
    "simulate": "spikeport.targets",
    "report": "spikeport.profiling",
}
__all__ = [
    "LIF", "__version__", "check", "compile", "convert", "load_run", "report", "simulate", "to_nir", "to_onnx", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spikeport' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

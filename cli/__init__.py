"""spikeport: a PyTorch CNN, its spiking twin, and what both cost on neuromorphic hardware."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("spikeport")

# Imported on first use: `spikeport --help` should not wait for torch.
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

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spikeport' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

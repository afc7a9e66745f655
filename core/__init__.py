"""Neurons, models, data sets and training. Knows nothing of the other layers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikeport.core.config import TrainConfig
    from spikeport.core.conversion import convert
    from spikeport.core.errors import CheckFailed, SpikeportError
    from spikeport.core.functional import lif
    from spikeport.core.models import ModelSpec, Twin
    from spikeport.core.neurons import LIF, TimeMean
    from spikeport.core.runs import Run, load_run
    from spikeport.core.training import train

#: Public name -> its module, imported on first use: who asks for an error alone does not wait for torch.
_HOME = {
    "LIF": "neurons",
    "CheckFailed": "errors",
    "ModelSpec": "models",
    "Run": "runs",
    "SpikeportError": "errors",
    "TimeMean": "neurons",
    "TrainConfig": "config",
    "Twin": "models",
    "convert": "conversion",
    "lif": "functional",
    "load_run": "runs",
    "train": "training",
}
__all__ = [
    "LIF", "CheckFailed", "ModelSpec", "Run", "SpikeportError", "TimeMean", "TrainConfig", "Twin", "convert", "lif",
    "load_run", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spikeport.core' has no attribute {name!r}")
    return getattr(import_module(f"spikeport.core.{_HOME[name]}"), name)

"""Neurons, models, data sets and training. Knows nothing of the other layers."""

from spikeport.core.config import TrainConfig
from spikeport.core.conversion import convert
from spikeport.core.errors import CheckFailed, SpikeportError
from spikeport.core.functional import lif
from spikeport.core.models import ModelSpec, Twin
from spikeport.core.neurons import LIF, TimeMean
from spikeport.core.runs import Run, load_run
from spikeport.core.training import train

__all__ = [
    "LIF",
    "CheckFailed",
    "ModelSpec",
    "Run",
    "SpikeportError",
    "TimeMean",
    "TrainConfig",
    "Twin",
    "convert",
    "lif",
    "load_run",
    "train",
]

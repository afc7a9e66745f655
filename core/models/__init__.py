"""The models, each defined once for both twins."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from spikeport.core.errors import SpikeportError
from spikeport.core.models.mobile import MIXNET, MNASNET, MobileNet
from spikeport.core.models.shufflenet import ShuffleNetV2
from spikeport.core.models.squeezenet import FIRES, PRUNED, SqueezeNet
from spikeport.core.models.twin import FORMS, KINDS, Twin
from spikeport.core.models.xception import Xception
from spikeport.core.settings import check_types

__all__ = ["FORMS", "KINDS", "MODELS", "ModelSpec", "SqueezeNet", "Twin"]


@dataclass(frozen=True)
class Entry:
    """A model by name: its builder, the fixed arguments of that name, and a line of help."""

    builder: Callable[..., nn.Module]
    arguments: dict[str, Any]
    help: str


MODELS: dict[str, Entry] = {
    "squeezenet": Entry(SqueezeNet, {"keep": tuple(FIRES)}, "SqueezeNet with all eight Fire modules"),
    "squeezenet-p": Entry(SqueezeNet, {"keep": PRUNED}, "SqueezeNet-P of the paper: Fire 4, 6, 8, 9"),
    "shufflenetv2": Entry(ShuffleNetV2, {}, "ShuffleNetV2 at the paper's 0.3x"),
    "mnasnet": Entry(MobileNet, {"table": MNASNET}, "MnasNet-B1 at the paper's size"),
    "mixnet": Entry(MobileNet, {"table": MIXNET}, "MixNet-S at the paper's size, kernels mixed per channel group"),
    "xception": Entry(Xception, {}, "Xception-like, at the paper's size"),
}


#: 4 GiB of float32; the largest model at width 1 has a million.
MOST_PARAMETERS = 1 << 30


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a model again; saved as ``model.json``."""

    name: str = "squeezenet-p"
    twin: Twin = field(default_factory=Twin)
    num_classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    width: float = 1.0
    keep: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_classes", "in_channels", "image_size", "width"):
            if getattr(self, name) <= 0:
                raise SpikeportError(f"{name} is {getattr(self, name)}; it must be positive")

    def build(self, seed: int = 0) -> nn.Module:
        """The model with weights drawn from ``seed``.

        Raises:
            SpikeportError: an unknown name or option, or more than ``MOST_PARAMETERS``.
        """
        if self.name not in MODELS:
            raise SpikeportError(f"unknown model {self.name!r}; available: {', '.join(MODELS)}")
        entry = MODELS[self.name]
        arguments = dict(entry.arguments)
        if self.keep is not None:
            if "keep" not in arguments:
                raise SpikeportError(f"--keep names Fire modules; {self.name} has none")
            arguments["keep"] = self.keep
        build = partial(entry.builder, self.twin, self.num_classes, self.in_channels, self.width, **arguments)
        count = _parameters(build)
        if count > MOST_PARAMETERS:
            raise SpikeportError(
                f"{self.name} of width {self.width:g} with {self.in_channels} input channels and {self.num_classes} "
                f"classes has {count:.3g} parameters; {MOST_PARAMETERS:.3g} are the most: make it smaller"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "ModelSpec":
        """Raises SpikeportError where the dictionary is not one that ``to_dict`` wrote."""
        try:
            value = dict(value)
            value["twin"] = Twin(**value["twin"])
            return ModelSpec(**value)
        except (TypeError, ValueError, KeyError) as error:
            raise SpikeportError(f"not a model description: {error}") from None


def _parameters(build: Callable[[], nn.Module]) -> float:
    """How many the model would have, counted without memory for them; infinite where 64 bits do not hold a size."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build().parameters())
    except (RuntimeError, TypeError, OverflowError) as error:  # torch raises the first two
        if "verflow" in repr(error):
            return math.inf
        raise

"""The settings of one training run, and their file."""

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spikeport.core.errors import SpikeportError
from spikeport.core.files import write_text
from spikeport.core.models import ModelSpec, Twin
from spikeport.core.settings import check_types

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("step", "cosine", "constant")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of ``train``; the defaults are the paper's method but for the batch (the paper: 8).

    Attributes:
        patience: epochs without a better validation accuracy before training stops (0: never).
        milestones, gamma: epochs at which the step schedule multiplies the learning rate, and by what.
        momentum, weight_decay: as in torch's optimisers (momentum: SGD only).
        device: "auto" takes a GPU where there is one.
        precision: "bf16" runs convolutions under autocast; the membrane stays float32.
    """

    model: str = "squeezenet-p"
    kind: str = "snn"
    dataset: str = "digits"
    data: str | None = None
    epochs: int = 150
    batch_size: int = 32
    lr: float = 1e-3
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "step"
    milestones: tuple[int, ...] = (50, 100)
    gamma: float = 0.1
    patience: int = 10
    keep: tuple[int, ...] | None = None
    width: float = 1.0
    spiking: str = "activations"
    time_steps: int = 4
    tau: float = 2.0
    v_threshold: float = 1.0
    surrogate: str = "atan"
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_types(self)
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise SpikeportError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SpikeportError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        for name in ("lr", "gamma"):
            if getattr(self, name) <= 0:
                raise SpikeportError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("momentum", "weight_decay", "patience"):
            if getattr(self, name) < 0:
                raise SpikeportError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.seed < 2**32:
            raise SpikeportError(f"seed is {self.seed}; it must lie within 0..{2**32 - 1}")

    def spec(self, num_classes: int, image_shape: tuple[int, int, int]) -> ModelSpec:
        twin = Twin(self.kind, self.spiking, self.time_steps, self.tau, self.v_threshold, self.surrogate)
        channels, size, _ = image_shape
        return ModelSpec(self.model, twin, num_classes, channels, size, self.width, self.keep)

    def save(self, path: Path) -> None:
        """TOML; a setting that is None is left out."""
        # A JSON string, number or list of numbers is the same in TOML, but for DEL and what \u can say.
        toml = lambda value: json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # noqa: E731
        lines = [f"{name} = {toml(value)}" for name, value in asdict(self).items() if value is not None]
        write_text(path, "\n".join(lines) + "\n")

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The settings a TOML file names. Raises SpikeportError for unknown names and for a damaged file."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SpikeportError(f"{path}: no such file") from None
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpikeportError(f"{path}: not readable as TOML ({error})") from None
        known = {f.name for f in fields(TrainConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SpikeportError(f"{path}: unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return values

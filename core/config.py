"""The settings of one training run, and their file."""

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spikeport.core.data.augment import AUGMENTATIONS
from spikeport.core.errors import SpikeportError
from spikeport.core.files import write_text
from spikeport.core.models import ModelSpec, Twin
from spikeport.core.settings import check_types

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("step", "cosine", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
LOSSES = ("cross-entropy", "temporal", "gradient-aware", "grad-cam")
#: Targets whose arithmetic a network can be trained in.
TRAINING_TARGETS = ("loihi",)
CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "loss": LOSSES}
POSITIVE = ("lr", "gamma", "gradient_eps", "temperature")
NOT_NEGATIVE = ("weight_decay", "patience", "warmup", "clip", "loss_weight", "rate_weight")
#: Of epochs and images in a step: what fits 32 bits with a sign.
MOST = 2**31 - 1
#: The largest float32.
MOST_LR = 3.4028234e38


@dataclass(frozen=True)
class TrainConfig:
    """Settings of ``train``; the defaults are the paper's method but for the batch (the paper: 8).

    Attributes:
        alpha: steepness of the surrogate (None: its default in ``SURROGATES``).
        patience: epochs without a better validation accuracy before training stops (0: never).
        batch_size: images per step, over all processes together.
        milestones, gamma: epochs at which the step schedule multiplies the learning rate, and by what.
        warmup: epochs over which the learning rate first rises to ``lr``; fewer than ``epochs``.
        momentum, weight_decay: as in torch's optimisers (momentum: SGD only).
        clip: the largest Euclidean norm of the whole gradient (0: not clipped).
        ema: decay per step of a moving average of the weights, which is then judged and saved (0: none); less in the
            first steps, see ``average_of``.
        device: "auto" takes a GPU where there is one.
        precision: "bf16" and "fp16" run convolutions under autocast; the membrane stays float32.
        compile: through ``torch.compile``.
        loss: "cross-entropy" of the time-averaged prediction; "temporal": of the prediction of every step, averaged
            (SNNs), the teacher's share too; "gradient-aware" and "grad-cam" add ``loss_weight`` times a term
            (``spikeport.core.losses``); gradient_eps: eps of the gradient-aware one.
        label_smoothing: the share of the target that is spread over all classes.
        rate_weight, rate_goal: weight of a penalty on firing rates off the goal (spikes per neuron and step).
        teacher: a run folder to learn from as well; distill_weight: its share of the loss; temperature: of both.
        augment: of "crop", "flip", "cutout" (``spikeport.core.data.augment``).
        validation: the share of the training images that is held out (the paper: a fifth). It tells which epoch was the
            best, whose weights are kept.
        train_images: only so many of the training images (validation included), the first ones of every class.
        start: a run folder whose weights the model starts from; its model must be the same, or the CNN twin.
        target: train with the arithmetic of this target ("loihi"; None: plain training).
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
    alpha: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    warmup: int = 0
    clip: float = 0.0
    ema: float = 0.0
    loss: str = "cross-entropy"
    loss_weight: float = 0.2
    gradient_eps: float = 1e-8
    label_smoothing: float = 0.0
    rate_weight: float = 0.0
    rate_goal: float = 0.3
    teacher: str | None = None
    distill_weight: float = 0.5
    temperature: float = 4.0
    augment: tuple[str, ...] = ()
    validation: float = 0.2
    train_images: int | None = None
    start: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SpikeportError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.target not in (None, *TRAINING_TARGETS):
            raise SpikeportError(f"target {self.target!r} is not one of {', '.join(TRAINING_TARGETS)}")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        if unknown:
            raise SpikeportError(f"augment {unknown[0]!r} is not one of {', '.join(AUGMENTATIONS)}")
        for name in ("augment", "keep"):
            given = getattr(self, name) or ()
            if len(set(given)) < len(given):
                raise SpikeportError(f"{name} is {', '.join(map(str, given))}; name each once")
        for name in ("epochs", "batch_size", "train_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise SpikeportError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise SpikeportError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.lr > MOST_LR:
            raise SpikeportError(f"lr is {self.lr}; at most {MOST_LR} fits the weights' float32")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) > MOST:
                raise SpikeportError(f"{name} is {getattr(self, name)}; at most {MOST} is possible")
        if any(milestone < 1 for milestone in self.milestones):
            raise SpikeportError(f"milestones are {list(self.milestones)}; epochs are counted from 1 on")
        for name in ("data", "teacher", "start"):
            if not _is_utf8(getattr(self, name) or ""):
                raise SpikeportError(f"{name} is {getattr(self, name)!r}, which is no UTF-8; rename the folder")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise SpikeportError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.warmup >= self.epochs:
            raise SpikeportError(
                f"warmup is {self.warmup} of {self.epochs} epochs, so lr is never reached; lower warmup or raise epochs"
            )
        for name in ("momentum", "ema", "label_smoothing", "rate_goal", "distill_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpikeportError(f"{name} is {getattr(self, name)}; it must lie within 0..1")
        if not 0 < self.validation < 1:
            raise SpikeportError(f"validation is {self.validation}; it must lie between 0 and 1")
        if self.target and (self.loss != "cross-entropy" or self.compile):
            raise SpikeportError(
                f"target {self.target!r} trains with cross-entropy, a teacher and rate_weight; leave out another loss "
                "and compile"
            )
        if self.compile and self.loss != "cross-entropy":
            raise SpikeportError(f"loss {self.loss!r} looks into the network; leave out --compile")
        if not 0 <= self.seed < 2**32:
            raise SpikeportError(f"seed is {self.seed}; it must lie within 0..{2**32 - 1}")

    def spec(self, num_classes: int, image_shape: tuple[int, int, int]) -> ModelSpec:
        twin = Twin(self.kind, self.spiking, self.time_steps, self.tau, self.v_threshold, self.surrogate, self.alpha)
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
            raise SpikeportError(f"{path}: no such file; training writes one into every run folder") from None
        except (OSError, ValueError, RecursionError) as error:
            raise SpikeportError(f"{path}: not readable as TOML ({error}); mend it, or take the one of a run") from None
        known = {f.name for f in fields(TrainConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SpikeportError(f"{path}: unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return values


def laid_over(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with ``others`` in their place; where those name another surrogate, without that one's steepness."""
    before = settings.get("surrogate", TrainConfig.surrogate)
    kept = settings if others.get("surrogate", before) == before else settings | {"alpha": None}
    return kept | others


def _is_utf8(text: str) -> bool:
    """Whether it can be written to a file of settings; a path need not be UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

"""The run folder: what training leaves behind and everything later starts from.

config.toml          the resolved settings of ``train``
model.json           the model's description, its data set's statistics, its test results
weights.safetensors  the weights of the epoch with the best validation accuracy
metrics.csv          one row per epoch
layers.csv           gradient norm and firing rate of every layer, per epoch
figures/             curves, gradients and rates (``spikeport train`` draws them)
tensorboard/         events, where TensorBoard is installed
checkpoint.pt        the state to resume from
samples.npz          in a run that travels without its data set: a few test images, uint8, and their labels
"""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikeport.core.config import TrainConfig
from spikeport.core.data import ImageData, load_dataset
from spikeport.core.data.images import normalise
from spikeport.core.diagnosis import first_not_finite
from spikeport.core.errors import SpikeportError
from spikeport.core.files import read_json, reading_archive, replacing, write_json
from spikeport.core.models import ModelSpec
from spikeport.core.settings import check_types, finite

CONFIG_FILE = "config.toml"
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
SAMPLES_FILE = "samples.npz"
#: Numbers a file of weights may hold; within a row the model has them in its own type.
NUMBERS = (
    {torch.float64, torch.float32, torch.float16, torch.bfloat16},
    {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8},
)
#: What every run's results hold.
RESULTS = ("test_accuracy", "test_macro_f1")


@dataclass(frozen=True)
class DataInfo:
    """What a network must know of its data set: per-channel statistics of pixels in 0..1, and names."""

    name: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    folder: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not (len(self.image_shape) == 3 and self.image_shape[0] == len(self.mean) == len(self.std)):
            raise SpikeportError(
                f"image_shape {self.image_shape} does not suit {len(self.mean)} means, {len(self.std)} deviations"
            )
        if min(self.std) <= 0:
            raise SpikeportError(f"std {self.std} is not positive")

    def normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)

    @property
    def input_bound(self) -> float:
        """The largest magnitude a normalised pixel can have."""
        return max(max(m, 1 - m) / s for m, s in zip(self.mean, self.std, strict=True))


def info_of(data: ImageData, folder: str | None) -> DataInfo:
    """What a run keeps of the data set that lies in ``folder``."""
    return DataInfo(data.name, data.image_shape, data.mean, data.std, data.class_names, folder)


@dataclass(frozen=True)
class Run:
    """A trained network on disk."""

    path: Path
    spec: ModelSpec
    data: DataInfo
    results: dict[str, float]

    @property
    def kind(self) -> str:
        return self.spec.twin.kind

    @property
    def travels(self) -> bool:
        """Whether the run carries test images with it and does without its data set."""
        return (self.path / SAMPLES_FILE).exists()

    def model(self) -> nn.Module:
        """The network with its best weights, in evaluation mode, float32 on the CPU.

        Raises:
            SpikeportError: a description that cannot be built; weights missing, damaged, of another model, or not
                finite.
        """
        try:
            model = self.spec.build()
        except SpikeportError as error:
            raise SpikeportError(f"{self.path / MODEL_FILE}: {error}") from None
        load_weights(model, self.path / WEIGHTS_FILE)
        return model.eval()

    def samples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first ``count`` test images, normalised, float32 [N, C, H, W], and their classes, int64 [N].

        Raises:
            SpikeportError: fewer than one asked for, more than the run carries with it, or the data set is not where
                training found it, or has other images or classes.
        """
        if count < 1:
            raise SpikeportError(f"{count} samples asked for; at least 1 is needed")
        images, labels = self._carried(count) if self.travels else self._test_images
        return self.data.normalise(images[:count]).numpy(), labels[:count].numpy()

    @property
    def trained_for(self) -> str | None:
        """The target in whose arithmetic it was trained; None for float, or where its settings are not there."""
        file = self.path / CONFIG_FILE
        return TrainConfig.read(file).get("target") if file.exists() else None

    @cached_property  # a report asks for them again and again
    def _test_images(self) -> tuple[Tensor, Tensor]:
        data = load_dataset(self.data.name, self.data.folder)
        for name in ("image_shape", "class_names"):
            found, wanted = getattr(data, name), getattr(self.data, name)
            if found != wanted:
                raise SpikeportError(f"{self.path}: trained with {name} {wanted}; {data.name} now has {found}")
        return data.test_images, data.test_labels

    def _carried(self, count: int) -> tuple[Tensor, Tensor]:
        path = self.path / SAMPLES_FILE
        with reading_archive(path, "test images of a run", "copy it again") as archive:
            images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"])
        if images.dtype != torch.uint8 or images.shape[1:] != self.data.image_shape or len(labels) != len(images):
            raise SpikeportError(f"{path}: images {list(images.shape)}, the run takes {self.data.image_shape} in uint8")
        if count > len(images):
            raise SpikeportError(f"{path}: {count} samples asked for; this run carries {len(images)} test images")
        return images, labels


def load_run(path: Path | str) -> Run:
    """Opens a run folder. Raises SpikeportError where it is missing or not one."""
    path = Path(path)
    if not path.is_dir():
        if path.is_file():
            raise SpikeportError(f"{path}: a file, and no run folder as `spikeport train` makes them")
        raise SpikeportError(f"{path}: no such run folder; `spikeport train --out {path}` makes one")
    if not (path / MODEL_FILE).exists():
        if (path / CONFIG_FILE).exists():
            remedy = f"`spikeport train --config {path / CONFIG_FILE} --resume --out {path}` finishes it"
            raise SpikeportError(f"{path}: no {MODEL_FILE}, for its training has not come to its end; {remedy}")
        raise SpikeportError(f"{path}: no {MODEL_FILE}, so this is not a run folder; `spikeport train` makes one")
    value = read_json(path / MODEL_FILE)
    try:
        data = DataInfo(**value["data"])
        return Run(path, ModelSpec.from_dict(value["model"]), data, _results(value["results"]))
    except (TypeError, ValueError, KeyError, AttributeError, SpikeportError) as error:
        raise SpikeportError(f"{path / MODEL_FILE}: not the description of a run ({error}); train again") from None


def _results(value: Any) -> dict[str, float]:
    results = dict(value)
    for name in {*RESULTS, *results}:
        found = results.get(name)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not finite(found):
            raise SpikeportError(f"results: {name} is {found!r}; expected a finite number")
    return results


def save_model(path: Path, spec: ModelSpec, data: DataInfo, results: dict[str, float]) -> None:
    """Writes model.json into the run folder ``path``."""
    value: dict[str, Any] = {"model": spec.to_dict(), "data": data.__dict__, "results": results}
    write_json(path / MODEL_FILE, value)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a .safetensors file."""
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills ``model`` in place. Raises SpikeportError where the file does not suit it exactly."""
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no such file; train again or copy the weights there") from None
    except (SafetensorError, OSError) as error:
        raise SpikeportError(f"{path}: damaged or truncated ({error}); train again") from None
    wanted = model.state_dict()
    wrong = [n for n in wanted if n not in weights or weights[n].shape != wanted[n].shape]
    wrong += [n for n in weights if n not in wanted]
    if wrong:
        raise SpikeportError(
            f"{path}: weights of another model: {len(wrong)} tensors are missing, unknown or of another shape, "
            f"{wrong[0]} first; use the model.json they were trained with"
        )
    for name, tensor in weights.items():
        dtypes = {tensor.dtype, wanted[name].dtype}
        if not any(dtypes <= alike for alike in NUMBERS):
            raise SpikeportError(
                f"{path}: {name} is {tensor.dtype}, the model's {wanted[name].dtype}; take what training wrote"
            )
        weights[name] = tensor.to(wanted[name].dtype)
    bad = first_not_finite(weights)
    if bad:
        raise SpikeportError(f"{path}: {bad} holds NaN or infinity; train again with a lower learning rate")
    for name, tensor in weights.items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise SpikeportError(f"{path}: {name} holds a negative variance; take what training wrote")
    model.load_state_dict(weights)


def start_from(path: Path, spec: ModelSpec, model: nn.Module) -> None:
    """Fills ``model``, built from ``spec``, with the weights of a run; those of a CNN also fill its spiking twin.

    Neurons have no weights, so that those of ``spec`` may be others than the run's.

    Raises:
        SpikeportError: no such run, or its model is another.
    """
    start = load_run(path).spec
    twin = spec.twin if spec.twin.kind in ("snn", start.twin.kind) else start.twin
    found, wanted = _flat(replace(start, twin=twin)), _flat(spec)
    different = [name for name in wanted if found[name] != wanted[name]]
    if different:
        name = different[0]
        raise SpikeportError(
            f"{path}: the run to start from has {name} = {found[name]!r}, asked for {wanted[name]!r}; make them equal"
        )
    load_weights(model, path / WEIGHTS_FILE)


def warn_where_seen(path: Path, config: TrainConfig) -> None:
    """Warns where ``config`` judges epochs by images that the run ``path``, its start or its teacher, was trained on.

    Its share held out is part of a larger one, but not of one of other images (see ``data.split``).
    """
    if not (path / CONFIG_FILE).exists():  # a run of weights alone
        return
    values = TrainConfig.read(path / CONFIG_FILE)
    run = TrainConfig(**{name: values[name] for name in ("dataset", "train_images", "validation") if name in values})
    same = run.train_images == config.train_images
    if run.dataset != config.dataset or (same and config.validation <= run.validation):
        return
    remedy = f"--validation {run.validation}"
    if not same:
        remedy += f" --train-images {run.train_images}" if run.train_images else " and no --train-images"
    warnings.warn(
        f"{path} held out {run.validation} of {run.train_images or 'all'} training images, this training "
        f"{config.validation} of {config.train_images or 'all'}: epochs are judged by images it was trained on; "
        f"take {remedy}",
        RuntimeWarning,
        stacklevel=4,
    )


def _flat(spec: ModelSpec) -> dict[str, Any]:
    return spec.to_dict() | spec.twin.__dict__ | {"twin": None}

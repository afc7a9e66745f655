"""The state that a run resumes from, written after every epoch."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from spikeport.core.config import TrainConfig
from spikeport.core.data import ImageData
from spikeport.core.errors import SpikeportError, reason
from spikeport.core.files import replacing
from spikeport.core.models import ModelSpec
from spikeport.core.records import Told

#: Settings that may change between a run and its resumption.
FREE = {"epochs", "patience", "data", "device", "start"}


def _identity(config: TrainConfig, spec: ModelSpec, data: ImageData) -> dict[str, Any]:
    """What must not change between a run and its resumption."""
    free = FREE - {"epochs"} if config.schedule == "cosine" else FREE  # they shape the schedule
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    sizes = {"num_classes": spec.num_classes, "image_size": spec.image_size, "in_channels": spec.in_channels}
    facts = {"class_names": data.class_names, "images": len(data.train_images), "mean": data.mean, "std": data.std}
    return settings | sizes | {f"the data's {name}": value for name, value in facts.items()}


def save_checkpoint(
    path: Path, config: TrainConfig, spec: ModelSpec, data: ImageData, parts: Mapping[str, Any], told: Any
) -> None:
    """Writes the state of every part, and what the run has told so far (lists and dictionaries of plain values)."""
    state = {"identity": _identity(config, spec, data), "told": told} | {
        n: part.state_dict() for n, part in parts.items()
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def restore_checkpoint(
    path: Path, config: TrainConfig, spec: ModelSpec, data: ImageData, parts: Mapping[str, Any]
) -> Told:
    """Fills every part; returns what the run had told.

    Raises:
        SpikeportError: a checkpoint that is missing, damaged, or of other settings or data.
    """
    try:
        with path.open("rb") as file:
            if not is_zipfile(file):  # of which torch would say little: it takes it for a pickle
                raise SpikeportError("no whole checkpoint")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no checkpoint to resume from; train without --resume") from None
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise SpikeportError(f"{path}: damaged or truncated ({reason(error)}); train again with --overwrite") from None
    if not isinstance(state, dict) or not {"identity", "told"} <= set(state):
        raise SpikeportError(f"{path}: not a checkpoint of this spikeport; train again with --overwrite")
    wanted, found = _identity(config, spec, data), state["identity"]
    changed = [name for name in wanted if wanted[name] != found.get(name)]
    if changed:
        name = changed[0]
        raise SpikeportError(
            f"{path}: trained with {name} = {found.get(name)!r}, asked for {wanted[name]!r}; "
            "resume with the same settings or train into another folder"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        told = Told(**state["told"])
        told.best()
    except Exception as error:  # what torch and its optimisers raise for states of others
        raise SpikeportError(
            f"{path}: not a checkpoint of this training ({reason(error)}); train again with --overwrite"
        ) from None
    return told

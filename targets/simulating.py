"""Runs an exported network where it will live."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from spikeport.core.arrays import as_array
from spikeport.core.errors import SpikeportError
from spikeport.core.files import refuse_existing
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import Run, load_run
from spikeport.targets.base import Target, find_target, pick_engine, target_names


def simulate(
    source: Path | str,
    target: str = "loihi",
    engine: str | None = None,
    samples: int = 64,
    x: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Any:
    """Runs an exported network and saves what it saw.

    Args:
        source: a run folder, or a program file of the target.
        samples: how many test images of the run's data set to take, unless ``x`` gives samples [N, ...].
        out: the record's file; where None, beside the program as the target names it.
        options: passed on to the engine (``rasters``, ``processes``, ``convolution``, ``timeout``); ``network``, the
            model that a program of no run was compiled from, to hold the engine against (Loihi).

    Returns:
        ``SpikeRecord`` (Loihi) or ``OnnxRecord``.

    Raises:
        SpikeportError: nothing exported yet, no samples, or an engine that is not there.
        CheckFailed: a state left its 24 bits.
    """
    source = Path(source)
    if not source.exists():
        file = "the program's file is written by `spikeport export`"
        remedy = file if source.suffix else f"`spikeport train --out {source}` makes a run"
        raise SpikeportError(f"{source}: no such run folder or program; {remedy}")
    found = find_target(target)
    chosen = pick_engine(found, engine)
    run = load_run(source) if source.is_dir() else None
    if run is not None:
        _require_kind(run, found)
    program = source / found.file if run else source
    if not program.is_file():
        raise SpikeportError(f"{program}: no such file; `spikeport export {source} --target {target}` writes it")
    path = Path(out) if out else program.with_name(found.record.format(engine=chosen))
    refuse_existing(path, overwrite)
    if x is None:
        if run is None:
            raise SpikeportError(f"{source} is a program without a data set; give its samples with --input X.npy")
        if labels is not None:
            raise SpikeportError("labels without samples; give both, --input X.npy --labels Y.npy")
        x, labels = run.samples(samples)
        if len(x) < samples:
            asked = f"{samples} samples asked for; {run.data.name} has {len(x)} test images"
            warnings.warn(asked, RuntimeWarning, stacklevel=2)
    x = as_array(x, "the samples")
    labels = None if labels is None else as_array(labels, "the labels")
    record = found.simulate(program, x, labels, chosen, progress, run, **options)
    record.save(path)
    return record


def _require_kind(run: Run, target: Target) -> None:
    if run.kind != target.kind:
        other = next(name for name in target_names() if find_target(name).kind == run.kind)
        raise SpikeportError(
            f"{run.path} is a {run.kind.upper()}, which target {target.name} does not take; "
            f"`spikeport simulate {run.path} --target {other}`"
        )

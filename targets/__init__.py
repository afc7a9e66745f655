"""Where an exported network runs: Loihi (simulated) and ONNX Runtime."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nir
import numpy as np

from spikeport.core.arrays import as_array
from spikeport.core.errors import SpikeportError
from spikeport.core.files import refuse_existing, write_json
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import Run, load_run
from spikeport.export import CERTIFICATE_FILE, NIR_FILE, Certificate, read_nir, refuse_beside, to_nir
from spikeport.export.nir_foreign import with_metadata
from spikeport.export.nir_graph import DT, KEY, metadata_of
from spikeport.export.verify import require_own_weights
from spikeport.targets.base import Target, find_target, pick_engine, target_names
from spikeport.targets.loihi import LoihiTarget
from spikeport.targets.loihi.against_float import require_own
from spikeport.targets.loihi.check import check_program
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord, differences

__all__ = [
    "SpikeRecord",
    "Target",
    "check",
    "compile",
    "differences",
    "find_target",
    "require_own",
    "simulate",
    "target_names",
]

PROGRAM_FILE = LoihiTarget.file
#: Beside the program: the same network for lava-dl; whether it fits a chip.
NET_FILE, COMPATIBILITY_FILE = "model.net", "compatibility.json"


@contextmanager
def nir_file(source: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """The NIR file of a run (exported now if it was not, or again with ``overwrite``), or the file itself.

    A file that was not there before goes again where what is done with it fails.
    """
    source = Path(source)
    if not source.is_dir():
        if source.suffix != ".nir" or not source.is_file():
            there = (
                "neither a run folder nor a NIR file (*.nir)" if source.exists() else "no such run folder or NIR file"
            )
            raise SpikeportError(f"{source}: {there}")
        yield source
        return
    run = load_run(source)
    if run.kind == "cnn":
        raise SpikeportError(f"{source} is a CNN; `spikeport export {source} --target onnx` exports it")
    file = source / NIR_FILE
    certificate = file.with_name(CERTIFICATE_FILE)
    new = not file.exists()
    if new or overwrite:
        to_nir(run, overwrite=True)  # a certificate alone is of a file that is gone
    Certificate.load(file)
    try:
        yield file
    except BaseException:
        if new:
            file.unlink()
            certificate.unlink()
            with suppress(OSError):  # not empty: something else is there
                file.parent.rmdir()
        raise


def _graph(
    source: Path | str, file: Path, time_steps: int | None, dt: float | None, calibration: np.ndarray | None
) -> nir.NIRGraph:
    """The graph of ``source``'s NIR file, to compile.

    Raises:
        SpikeportError: it was exported from other weights than the run has now, or has no use for calibration samples.
    """
    graph = readable(file, time_steps, dt, calibration)
    metadata = metadata_of(graph)
    if Path(source).is_dir():
        require_own_weights(metadata.weights_sha256, load_run(source), file, "nir")
    if calibration is not None and metadata.input_bound is not None:
        raise SpikeportError(f"{file}: says the range of its input itself; leave the calibration samples out")
    return graph


def compile(
    source: Path | str,
    program: Path | str | None = None,
    chip: str | None = None,
    calibration: np.ndarray | None = None,
    overwrite: bool = False,
    time_steps: int | None = None,
    dt: float | None = None,
    input_mode: str = "graded",
    net: bool = False,
) -> LoihiProgram:
    """Compiles a run or a NIR file for Loihi: writes program.npz, and compatibility.json beside it.

    Args:
        calibration: real samples [N, ...]; the range of the input where the file does not say it.
        time_steps, dt: T and seconds per step (1e-4 where None), for a NIR file of another framework.
        input_mode: how samples enter, "graded" or "host-current"; see ``targets.loihi.program.LoihiProgram``.
        net: write model.net too, for lava-dl; see ``targets.loihi.netx``.

    Returns:
        The ``LoihiProgram``.

    Raises:
        SpikeportError: a layer Loihi cannot hold, by name, limit and remedy; or an existing program, or what is beside
            one.
    """
    target = LoihiTarget()
    target.require(chip, input_mode)  # before a NIR file is written
    path = Path(program) if program else default_folder(source) / PROGRAM_FILE
    refuse_existing(path, overwrite)
    net_file, fit_file = path.with_name(NET_FILE), path.with_name(COMPATIBILITY_FILE)
    for beside in (net_file, fit_file):
        refuse_beside(beside, overwrite)
    if calibration is not None:
        calibration = as_array(calibration, "the calibration samples")
    with nir_file(source, overwrite) as file:
        graph = _graph(source, file, time_steps, dt, calibration)
        compiled = target.compile(graph, path, calibration, input_mode=input_mode, net=net_file if net else None)
    if not net:
        net_file.unlink(missing_ok=True)  # of the program that was there
    fit = check_program(compiled, chip, input_mode, graph=graph)
    write_json(fit_file, fit.to_dict())
    return compiled


def readable(
    file: Path, time_steps: int | None = None, dt: float | None = None, samples: np.ndarray | None = None
) -> nir.NIRGraph:
    """A NIR file's graph with our metadata. Raises SpikeportError where T is not known.

    Args:
        samples: [N, ...], a network whose input is held, or [T, N, ...], one whose input changes.
    """
    graph = read_nir(file)
    if KEY in graph.metadata:
        own = metadata_of(graph)
        for option, given, known in (("--time-steps", time_steps, own.time_steps), ("--dt", dt, own.dt)):
            if given is not None and given != known:
                raise SpikeportError(f"{file}: {option} is {given}, the file itself says {known}; leave {option} out")
    elif time_steps is None:
        raise SpikeportError(f"{file}: does not say over how many steps it runs; add --time-steps T (and --dt)")
    shape = next((n.input_type["input"] for n in graph.nodes.values() if isinstance(n, nir.Input)), ())
    sequence = samples is not None and samples.ndim == np.size(shape) + 2
    return with_metadata(graph, 1 if time_steps is None else time_steps, DT if dt is None else dt, sequence)


def check(
    source: Path | str,
    target: str = "loihi",
    chip: str | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    calibration: np.ndarray | None = None,
    **options: Any,
) -> Any:
    """Whether a run or a NIR file fits the target: every layer and limit, before anything is compiled.

    Args:
        time_steps, dt, calibration: as of ``compile``.
        options: the target's own (Loihi: ``input_mode``, see ``compile``).

    Returns:
        ``targets.loihi.compatibility.Compatibility`` (Loihi).

    Raises:
        SpikeportError: no NIR file, T or the range of the input unknown, an unknown target or chip, or a target without
            limits (ONNX Runtime).
    """
    found: Any = find_target(target)
    if calibration is not None:
        calibration = as_array(calibration, "the calibration samples")
    with nir_file(source) as file:
        graph = _graph(source, file, time_steps, dt, calibration)
        return found.check(graph, chip, calibration, **options)


def default_folder(source: Path | str) -> Path:
    """Where files derived from ``source`` go: into a run folder, or beside a file."""
    source = Path(source)
    return source if source.is_dir() else source.parent


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

"""From a run, a NIR file or a model to a Loihi program; whether it would fit."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import nir
import numpy as np
from torch import nn

from spikeport.core.arrays import as_array
from spikeport.core.errors import SpikeportError
from spikeport.core.files import refuse_existing, replacing, write_json
from spikeport.core.runs import load_run
from spikeport.export import CERTIFICATE_FILE, NIR_FILE, Certificate, read_nir, refuse_beside, to_nir
from spikeport.export.nir_foreign import with_metadata
from spikeport.export.nir_graph import DT, KEY, metadata_of
from spikeport.export.verify import require_own_weights
from spikeport.targets.base import find_target
from spikeport.targets.loihi import LoihiTarget
from spikeport.targets.loihi.check import check_program
from spikeport.targets.loihi.program import LoihiProgram

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


def compile_model(
    model: nn.Module | Path | str,
    folder: Path | str,
    samples: np.ndarray | None,
    time_steps: int | None = None,
    chip: str | None = None,
    input_mode: str = "graded",
    net: bool = False,
    overwrite: bool = False,
) -> tuple[Certificate, LoihiProgram]:
    """The NIR file and the program of a model, FOLDER/nir/model.nir and FOLDER/loihi/program.npz.

    Neither is written unless both can be.

    Args:
        model, samples, time_steps: as of ``export.to_nir``: one's own, whose samples are the range of the input too,
            or a run folder.
        chip, input_mode, net: as of ``compile``.

    Raises:
        SpikeportError, CheckFailed: as ``export.to_nir`` and ``compile``.
    """
    LoihiTarget().require(chip, input_mode)
    folder = Path(folder)
    file, program_file = folder / NIR_FILE, folder / PROGRAM_FILE
    net_file = program_file.with_name(NET_FILE)
    for existing in (file, program_file):
        refuse_existing(existing, overwrite)
    for beside in (file.with_name(CERTIFICATE_FILE), net_file, program_file.with_name(COMPATIBILITY_FILE)):
        refuse_beside(beside, overwrite)
    with TemporaryDirectory() as scratch:
        made = Path(scratch)
        written = to_nir(model, made / NIR_FILE, samples, time_steps=time_steps)
        program = compile(made / NIR_FILE, made / PROGRAM_FILE, chip, samples, input_mode=input_mode, net=net)
        net_file.unlink(missing_ok=True)  # of the program that was there
        for new in (f for f in made.rglob("*") if f.is_file()):
            with replacing(folder / new.relative_to(made)) as temporary:
                copyfile(new, temporary)
    return written, program


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
    source: Path | str | nn.Module,
    target: str = "loihi",
    chip: str | None = None,
    time_steps: int | None = None,
    dt: float | None = None,
    calibration: np.ndarray | None = None,
    **options: Any,
) -> Any:
    """Whether a run, a NIR file or a model fits the target: every layer and limit, before anything is compiled.

    Args:
        time_steps, dt, calibration: as of ``compile``; of a model, time_steps and samples as of ``compile_model``.
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
    if isinstance(source, nn.Module):
        if calibration is None:
            raise SpikeportError(f"{type(source).__name__}: a model that is no run needs samples (--calibration X.npy)")
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / NIR_FILE
            to_nir(source, file, calibration, time_steps=time_steps)
            return check(file, target, chip, calibration=calibration, **options)
    with nir_file(source) as file:
        graph = _graph(source, file, time_steps, dt, calibration)
        return found.check(graph, chip, calibration, **options)


def default_folder(source: Path | str) -> Path:
    """Where files derived from ``source`` go: into a run folder, or beside a file."""
    source = Path(source)
    return source if source.is_dir() else source.parent

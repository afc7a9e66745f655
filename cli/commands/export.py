"""spikeport export"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zipfile import BadZipFile

import typer

from spikeport import console

if TYPE_CHECKING:
    import numpy as np

    from spikeport.export import Certificate

EPILOG = """Examples:

spikeport export runs/snn --target nir

spikeport export runs/snn --target loihi

spikeport export runs/cnn --target onnx"""


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(export)


def export(
    source: Annotated[Path, typer.Argument(help="A run folder, or a NIR file (--target loihi).")],
    target: Annotated[str, typer.Option(help="loihi, nir or onnx.")],
    chip: Annotated[str | None, typer.Option(help="loihi1 or loihi2: what compatibility.json is about.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Samples [N, C, H, W] as .npy, for a NIR file.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; inside the run folder where left out.")] = None,
    overwrite: console.Overwrite = False,
) -> None:
    """Export a network; every file is read back and verified on real samples as it is written."""
    from spikeport.core.errors import SpikeportError

    if target == "nir":
        from spikeport.export import to_nir

        certificate(to_nir(source, out, overwrite=overwrite), out or source / "nir/model.nir")
    elif target == "onnx":
        from spikeport.export import to_onnx

        certificate(to_onnx(source, out, overwrite=overwrite), out or source / "onnx/model.onnx")
    elif target == "loihi":
        from spikeport.targets import PROGRAM_FILE, compile, default_folder

        samples = load_array(calibration) if calibration else None
        program = compile(source, out, chip, samples, overwrite)
        neurons = sum(p.neurons for p in program.populations)
        console.say(
            f"{out or default_folder(source) / PROGRAM_FILE}: {len(program.populations)} populations, {neurons:,} "
            f"neurons, {len(program.synapses)} synapse groups, {program.time_steps} steps"
        )
    else:
        raise SpikeportError(f"unknown target {target!r}; available: loihi, nir, onnx")


def certificate(written: "Certificate", path: Path) -> None:
    """What the readers of an exported file said."""
    console.say(f"{path}: verified on {written.samples} samples")
    for witness in written.witnesses:
        details = witness.note or (f"{witness.differing_spikes} differing spikes" if witness.layers else "")
        console.say(f"  {witness.reader}: {witness.status}" + (f" ({details})" if details else ""))


def load_array(path: Path) -> "np.ndarray":
    """A .npy file. Raises SpikeportError where it is missing, damaged or would run code."""
    import numpy as np

    from spikeport.core.errors import SpikeportError

    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise SpikeportError(f"{path}: not a NumPy array file ({error}); write it with numpy.save") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise SpikeportError(f"{path}: holds no array of real numbers; write one with numpy.save")
    return array

"""spikeport export"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zipfile import BadZipFile

import typer

from spikeport import console
from spikeport.commands.train import integers

if TYPE_CHECKING:
    import numpy as np

    from spikeport.export import Certificate

EPILOG = """Examples:

spikeport export runs/snn --target loihi

spikeport export runs/cnn --target onnx

spikeport export mynets:vgg --weights vgg.pt --calibration X.npy --time-steps 4 --target loihi --out exported

spikeport export other.nir --time-steps 8 --calibration X.npy --target loihi --out exported"""


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(export)


def export(
    source: Annotated[str, typer.Argument(help="A run folder, a NIR file, or pkg.module:factory.")],
    target: Annotated[str, typer.Option(help="loihi, nir or onnx.")],
    chip: Annotated[
        str | None,
        typer.Option(help="loihi1 or loihi2: what compatibility.json is about, and what does not fit is told of."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of a factory's network: .safetensors or .pt.")] = None,
    input_shape: Annotated[str | None, typer.Option(help="Shape of one sample, as 3,32,32; checked.")] = None,
    time_steps: Annotated[int | None, typer.Option(help="T, for SpikingJelly, snnTorch and foreign NIR files.")] = None,
    dt: Annotated[float | None, typer.Option(help="Seconds per step of a foreign NIR file (default 1e-4).")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Real samples [N, ...] as .npy: range of the input, and to verify on.")
    ] = None,
    input: Annotated[
        str,
        typer.Option(help="loihi: graded (Loihi 2), or host-current (both chips: first layer on the host)."),
    ] = "graded",
    net: Annotated[
        bool, typer.Option("--net", help="loihi: write model.net too, for lava-dl's netx (chains of layers only).")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="onnx: write the 8-bit form too.")] = False,
    out: Annotated[Path | None, typer.Option(help="The folder to write; the run folder where left out.")] = None,
    overwrite: console.Overwrite = False,
) -> None:
    """Export a network; every file is read back and verified on real samples as it is written."""
    from spikeport.core.errors import SpikeportError
    from spikeport.core.files import read_record
    from spikeport.export import NIR_FILE, ONNX_FILE, is_factory, to_nir, to_onnx
    from spikeport.export.factory import build_model
    from spikeport.export.onnx_model import int8_path

    if target not in ("loihi", "nir", "onnx"):
        raise SpikeportError(f"unknown target {target!r}; available: loihi, nir, onnx")
    if int8 and target != "onnx":
        raise SpikeportError(f"--int8 belongs to --target onnx; --target {target} has integers of its own")
    if target != "loihi" and (net or chip or input != "graded"):
        raise SpikeportError("--chip, --input and --net belong to --target loihi")
    factory = is_factory(source)
    if not factory and (weights or input_shape):
        raise SpikeportError(f"--weights and --input-shape belong to pkg.module:factory, not to {source}")
    if time_steps is not None and (target == "onnx" or Path(source).is_dir()):
        raise SpikeportError("--time-steps belongs to SpikingJelly, snnTorch and foreign NIR files; leave it out")
    if dt is not None and (factory or target != "loihi" or Path(source).is_dir()):
        raise SpikeportError("--dt belongs to foreign NIR files; leave it out")
    if calibration and target == "loihi" and Path(source).is_dir():
        raise SpikeportError(f"--calibration: {source} knows the range of its input; leave it out")
    samples = load_array(calibration) if calibration else None
    if factory:
        if samples is None or out is None:
            raise SpikeportError(f"{source}: a network that is no run needs --calibration X.npy and --out DIR")
        if input_shape and integers(input_shape, "--input-shape", "3,32,32") != samples.shape[1:]:
            raise SpikeportError(f"--input-shape {input_shape} is not the shape of the samples, {samples.shape[1:]}")
        folder = out
    else:
        folder = out or Path(source)
    network = build_model(source, weights) if factory else Path(source)
    if target == "onnx":
        written = to_onnx(network, folder / ONNX_FILE, samples, overwrite, int8)
        certificate(written, folder / ONNX_FILE)
        if int8:
            console.say(
                f"{int8_path(folder / ONNX_FILE)}: the 8-bit form, of the same class on "
                f"{written.int8_agreement:.1%} of the images it was calibrated on; `spikeport simulate` runs both"
            )
        return
    file = folder / NIR_FILE
    if target == "nir":
        certificate(to_nir(network, file, samples, overwrite, time_steps), file)
        return
    from spikeport.targets import COMPATIBILITY_FILE, PROGRAM_FILE, compile, compile_model, default_folder

    path = (out or default_folder(Path(source))) / PROGRAM_FILE
    elsewhere = out is not None and Path(source).is_dir() and out.resolve() != Path(source).resolve()
    if factory or elsewhere:
        written, program = compile_model(network, folder, samples, time_steps, chip, input, net, overwrite)
        certificate(written, file)
    else:
        program = compile(Path(source), path, chip, samples, overwrite, time_steps, dt, input, net)
    neurons = sum(p.neurons for p in program.populations)
    console.say(
        f"{path}: {len(program.populations)} populations, {neurons:,} neurons, {len(program.synapses)} synapse groups, "
        f"{program.time_steps} steps"
    )
    for line in read_record(path.with_name(COMPATIBILITY_FILE), ("errors",))["errors"]:
        console.say(f"does not fit: {line}")


def certificate(written: "Certificate", path: Path) -> None:
    """What the readers of an exported file said."""
    console.say(f"{path}: verified on {written.samples} samples")
    for witness in written.witnesses:
        details = witness.note or (f"{witness.differing_spikes} differing spikes" if witness.layers else "")
        console.say(f"  {witness.reader}: {witness.status}" + (f" ({details})" if details else ""))
    if written.silent:
        console.say(f"  fired on none of these samples, which says nothing of them: {', '.join(written.silent)}")


def load_array(path: Path) -> "np.ndarray":
    """A .npy file. Raises SpikeportError where it is missing, damaged, a single number, or would run code."""
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
    if array.ndim == 0:
        raise SpikeportError(f"{path}: holds one number, not an array of samples; write one with numpy.save")
    return array

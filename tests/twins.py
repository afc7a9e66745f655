"""Two small trained twins, exported and simulated: what a report is made of."""

from pathlib import Path

from spikeport import compile, simulate, to_nir, to_onnx, train


def exported_twins(folder: Path, tiny, samples: int) -> Path:
    """Run folders ``cnn`` and ``snn`` in ``folder``, each simulated on so many test images."""
    for kind in ("cnn", "snn"):
        train(tiny(kind=kind), folder / kind)
    to_onnx(folder / "cnn", int8=True)
    to_nir(folder / "snn")
    compile(folder / "snn")
    simulate(folder / "cnn", "onnx", samples=samples)
    simulate(folder / "snn", samples=samples)
    return folder

"""From a trained model to files other programs run, each verified on real samples as it is written."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spikeport.core.arrays import as_array
from spikeport.core.data import load_dataset
from spikeport.core.errors import SpikeportError
from spikeport.core.files import refuse_existing, replacing
from spikeport.core.runs import Run, load_run
from spikeport.export.foreign import adopted
from spikeport.export.nir_graph import Metadata, build_nir, read_nir, signed, write_nir
from spikeport.export.onnx_model import export_onnx, int8_path, quantise
from spikeport.export.trace import deployed, graph_for, require_time_steps, trace
from spikeport.export.verify import (
    CERTIFICATE_FILE,
    Certificate,
    verify_nir,
    verify_owner,
    weights_digest,
)

__all__ = ["CERTIFICATE_FILE", "NIR_FILE", "ONNX_FILE", "Certificate", "is_factory", "read_nir", "to_nir", "to_onnx"]

#: Where a run folder keeps them.
NIR_FILE, ONNX_FILE = "nir/model.nir", "onnx/model.onnx"

#: Real samples an exported file is verified on.
SAMPLES = 64
#: Training images that the ranges of an 8-bit form are taken from.
CALIBRATION = 128
#: Share of them to which an 8-bit form should give the class that float32 gives.
INT8_AGREEMENT = 0.9


def to_nir(
    network: Run | Path | str | nn.Module,
    path: Path | str | None = None,
    samples: np.ndarray | None = None,
    overwrite: bool = False,
    time_steps: int | None = None,
) -> Certificate:
    """Writes a spiking network as a canonical NIR graph, with ``certificate.json`` beside it.

    Args:
        network: a run (or its folder), or a spiking model: of ours, of SpikingJelly or of snnTorch (one step of
            time, [N, ...] to [N, K]).
        path: the file to write; RUN/nir/model.nir where None.
        samples: float [N, ...] to verify it on, an array, tensor or lists, or [T, N, ...] for a network whose input
            changes (it calls no LIF with constant_input and no HoldTime); a run has its own test images.
        time_steps: T, for a model of another framework.

    A model is copied first and stays as it is, its mode too.

    Returns:
        The certificate: every reader of the file and where it agrees with the model.

    Raises:
        SpikeportError: a CNN, a layer without exact spiking form, missing samples, or an existing file, also beside it.
        CheckFailed: the file read back does not give the model's spikes; nothing is written.
    """
    model, samples, path, run = _opened(network, path, samples, "snn", NIR_FILE)
    refuse_existing(path, overwrite)
    refuse_beside(path.with_name(CERTIFICATE_FILE), overwrite)
    original = model
    model = adopted(model, samples.shape, time_steps)
    graph, held = graph_for(model, samples.shape)
    input_shape = samples.shape[1 if held else 2 :]
    traced = trace(model, input_shape, graph)
    require_time_steps(time_steps, traced.time_steps)
    metadata = Metadata(
        time_steps=traced.time_steps,
        input="constant" if traced.constant_input else "sequence",
        input_shape=input_shape,
        input_bound=run.data.input_bound if run else None,
        dataset=run.data.name if run else None,
        mean=run.data.mean if run else (),
        std=run.data.std if run else (),
        class_names=run.data.class_names if run else (),
        weights_sha256=weights_digest(run) if run else None,
    )
    nodes, names = build_nir(traced, metadata)
    with replacing(path) as temporary, torch.random.fork_rng(devices=[]):  # readers draw weights that they replace
        write_nir(signed(nodes), temporary)
        certificate = verify_nir(temporary, path.name, model, traced, names, samples)
        if original is not model:
            certificate = certificate.with_witness(verify_owner(original, model, samples, traced))
        certificate.require()
    certificate.save(path.with_name(CERTIFICATE_FILE))
    return certificate


def to_onnx(
    network: Run | Path | str | nn.Module,
    path: Path | str | None = None,
    samples: np.ndarray | None = None,
    overwrite: bool = False,
    int8: bool = False,
) -> Certificate:
    """Writes a CNN as ONNX in float32 with a dynamic batch, with ``certificate.json`` beside it.

    Args and errors are those of ``to_nir``; the file is held against ONNX Runtime. Weights of other precisions become
    float32 first.

    Args:
        int8: write the 8-bit form beside it (``model.int8.onnx``) too, calibrated on training images of the run, or,
            where there are none, on ``samples``.
    """
    model, samples, path, run = _opened(network, path, samples, "cnn", ONNX_FILE)
    refuse_existing(path, overwrite)
    refuse_beside(path.with_name(CERTIFICATE_FILE), overwrite)
    certificate = export_onnx(model.float(), path, samples, weights_digest(run) if run else None)
    int8_path(path).unlink(missing_ok=True)  # of an earlier export
    if int8:
        share = quantise(path, samples if run is None or run.travels else _training_images(run))
        certificate = replace(certificate, int8_agreement=share)
        certificate.save(path.with_name(CERTIFICATE_FILE))
        if share < INT8_AGREEMENT:
            warnings.warn(
                f"{int8_path(path)}: gives another class than float32 to {1 - share:.0%} of the images it was "
                "calibrated on; train the network for 8 bits, or keep float32",
                RuntimeWarning,
                stacklevel=2,
            )
    return certificate


def _training_images(run: Run) -> np.ndarray:
    data = load_dataset(run.data.name, run.data.folder)
    images: np.ndarray = run.data.normalise(data.train_images[:CALIBRATION]).numpy()
    return images


def refuse_beside(path: Path, overwrite: bool) -> None:
    """``refuse_existing`` for what would be written, or removed as out of date, beside an exported file."""
    refuse_existing(path, overwrite, "it is of another export there: name another folder, or pass --overwrite")


def is_factory(source: str) -> bool:
    """Whether a source names a function that builds a network, not a file."""
    return ":" in source and not Path(source).exists()


def _opened(
    network: Run | Path | str | nn.Module, path: Path | str | None, samples: np.ndarray | None, kind: str, default: str
) -> tuple[nn.Module, np.ndarray, Path, Run | None]:
    if isinstance(network, nn.Module):
        if path is None or samples is None:
            raise SpikeportError("exporting a model that is no run needs both a path and samples")
        return deployed(network), _finite(samples), Path(path), None
    if not isinstance(network, Run) and Path(network).is_file():
        raise SpikeportError(
            f"{network} is a file; `spikeport export` turns a run folder or pkg.module:factory into nir or onnx, "
            "and a NIR file (*.nir) into --target loihi"
        )
    run = network if isinstance(network, Run) else load_run(network)
    if run.kind != kind:
        other = "onnx" if run.kind == "cnn" else "nir (or loihi)"
        raise SpikeportError(
            f"{run.path} is a {run.kind.upper()}; `spikeport export {run.path} --target {other}` exports it"
        )
    found = _finite(run.samples(SAMPLES)[0] if samples is None else samples)
    if found.shape[1:] != run.data.image_shape:
        wanted = ", ".join(map(str, run.data.image_shape))
        raise SpikeportError(f"samples of shape {list(found.shape)}; {run.path} was trained on [N, {wanted}]")
    return run.model(), found, Path(path) if path else run.path / default, run


def _finite(samples: Any) -> np.ndarray:
    array = as_array(samples, "the samples")
    if array.size == 0:
        raise SpikeportError("zero samples to verify the export on; give at least one")
    if not np.isfinite(array).all():
        raise SpikeportError("the samples hold NaN or infinity")
    return array

"""Verification is part of exporting: the file is read back, run on real samples and held against the model.

The gate is float64: the model in double precision and our NumPy interpreter must agree in every spike. NIR fires
above its threshold and the model at it, so the file holds the next smaller float32; a float64 reader (SpikingJelly) may
differ only where the membrane lies in that one step (``STEP``), a float32 reader (snnTorch) only within ``TIE`` of the
threshold, or downstream of such a flip. Flips are listed, what follows from them is counted. Class currents of samples
without a flip must be equal up to rounding.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from spikeport.core.errors import CheckFailed, SpikeportError, reason
from spikeport.core.files import read_json, write_json
from spikeport.core.hooks import watched
from spikeport.core.neurons import LIF
from spikeport.core.runs import WEIGHTS_FILE, Run
from spikeport.core.settings import check_types
from spikeport.export import readers
from spikeport.export.foreign import owner, owner_forward
from spikeport.export.interpreter import Trajectory, interpret
from spikeport.export.nir_graph import metadata_of, read_nir
from spikeport.export.nir_nodes import ordered
from spikeport.export.signals import Node, Signal
from spikeport.export.trace import Traced

#: Beside every exported file.
CERTIFICATE_FILE = "certificate.json"
#: A membrane within TIE * max(1, |h|) of the threshold may fall either way in float32; where no membrane of a layer
#: reaches 1, its largest stands for the 1.
TIE = 1e-5
#: One float32 step, relative: between the model's threshold and the file's.
STEP = 2.0**-23
#: Class currents agree where they differ by less than this * max(1, the largest class current) in float64.
OUTPUT_TOLERANCE = 1e-9
#: In float32 by less than this * that: a sum of n terms is off by about sqrt(n) * 6e-8 of
#: its terms, 5e-6 for 8,192 of them; a lost bias or a wrong weight moves it by far more.
FLOAT32_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Witness:
    """One reader of the exported file.

    Attributes:
        status: "agrees", "agrees up to ties", "differs", or "cannot read" with the reason in ``note``.
        layers: layer -> number of differing spikes.
        differing_spikes: their sum.
        first_difference: the first layer, in the order layers run, where spikes differ.
        output_error: largest difference of a class current.
        predictions_agree: whether every sample is put into the same class.
        ties: the flips that lie at the threshold: layer, step, sample, distance.
    """

    reader: str
    status: str
    note: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    differing_spikes: int = 0
    first_difference: str | None = None
    output_error: float | None = None
    predictions_agree: bool | None = None
    ties: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Certificate:
    """What was measured about an exported file; saved beside it as ``CERTIFICATE_FILE``.

    Attributes:
        file, sha256: which file.
        silent: layers of the model that fired on none of the samples, about which equal spikes say nothing.
        int8_agreement: of the 8-bit form beside it: the share of the images it was calibrated on of the same class.
        weights_sha256: of the run's weights file it was made of; None where it is of no run, or says so itself (NIR).
    """

    file: str
    sha256: str
    samples: int
    witnesses: tuple[Witness, ...]
    spikes_compared: int = 0
    time_steps: int | None = None
    weights_sha256: str | None = None
    silent: tuple[str, ...] = ()
    int8_agreement: float | None = None

    @property
    def passed(self) -> bool:
        return all(w.status != "differs" for w in self.witnesses)

    def with_witness(self, witness: Witness) -> "Certificate":
        return replace(self, witnesses=(*self.witnesses, witness))

    def require(self) -> None:
        """Raises CheckFailed where a witness disagrees."""
        for witness in self.witnesses:
            if witness.status == "differs":
                found = f": {witness.note}"  # no spike, but what the network puts out
                if witness.differing_spikes:
                    where = "; ".join(filter(None, (f"first at {witness.first_difference}", witness.note)))
                    found = f" in {witness.differing_spikes} spikes ({where})"
                raise CheckFailed(
                    f"{self.file}: {witness.reader} differs from the model{found}; the file was not written"
                )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @staticmethod
    def load(exported: Path) -> "Certificate":
        """That of an exported file. Raises SpikeportError where there is none, it is damaged, or of another file."""
        path = exported.with_name(CERTIFICATE_FILE)
        value = read_json(path)
        try:
            if not value.get("passed"):
                raise SpikeportError("it has not passed")
            witnesses = [Witness(**witness) for witness in value["witnesses"]]
            found = Certificate(**{k: v for k, v in value.items() if k != "passed"} | {"witnesses": tuple(witnesses)})
            for part in (found, *witnesses):
                check_types(part)
        except (TypeError, KeyError, AttributeError, SpikeportError) as error:
            raise SpikeportError(f"{path}: damaged ({reason(error)}); export again with --overwrite") from None
        if not exported.is_file() or found.sha256 != sha256(exported) or found.file != exported.name:
            raise SpikeportError(
                f"{exported}: not the file its certificate was made for; export it again with --overwrite"
            )
        return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_digest(run: Run) -> str:
    """SHA-256 of a run's weights file. Raises SpikeportError where it is not there."""
    path = run.path / WEIGHTS_FILE
    try:
        return sha256(path)
    except OSError as error:
        raise SpikeportError(f"{path}: not readable ({error}); train again or copy the weights there") from None


def of_other_weights(known: str | None, run: Run) -> bool:
    """Whether what says that it was made of the weights ``known`` was made of others than a run's now."""
    return known is not None and known != weights_digest(run)


def require_own_weights(known: str | None, run: Run, file: Path, target: str) -> None:
    """Raises SpikeportError where a run's exported file was made of other weights than the run has now."""
    if of_other_weights(known, run):
        raise SpikeportError(
            f"{file}: exported from other weights than the run has now; "
            f"`spikeport export {run.path} --target {target} --overwrite` exports them"
        )


def verify_nir(
    path: Path, name: str, model: nn.Module, traced: Traced, names: dict[Node, str], samples: np.ndarray
) -> Certificate:
    """Reads the file at ``path`` back and compares it with the model.

    Args:
        name: what the certificate calls the file.
        names: node -> its name in the file.
        samples: float [N, ...], or [T, N, ...] for a network without constant input.
    """
    graph = read_nir(path)
    reference = interpret(graph, samples, margins=True, as_model=True)
    compared = sum(s.size for s in reference.spikes.values())
    witnesses = [_against_model(model, traced, names, samples, reference)]
    for label, read, tie in (
        (readers.label("spikingjelly", "float64"), readers.read_spikingjelly, STEP),
        (readers.label("snntorch", "float32"), readers.read_snntorch, TIE),
    ):
        try:
            reading = read(path, samples)
        except readers.CannotRead as error:
            witnesses.append(Witness(label, "cannot read", str(error)))
            continue
        witnesses.append(_against_reference(label, graph, reference, reading, tie))
    return Certificate(
        name,
        sha256(path),
        samples.shape[0 if traced.constant_input else 1],
        tuple(witnesses),
        compared,
        traced.time_steps,
        silent=_silent(traced, names, reference),
    )


def _silent(traced: Traced, names: dict[Node, str], reference: Trajectory) -> tuple[str, ...]:
    fired: dict[str, bool] = {}
    for layer, signal in traced.observed:
        fired[layer] = fired.get(layer, False) or bool(assembled(signal, names, reference.spikes).any())
    return tuple(layer for layer, any_spike in fired.items() if not any_spike)


def _against_model(
    model: nn.Module, traced: Traced, names: dict[Node, str], samples: np.ndarray, reference: Trajectory
) -> Witness:
    """The PyTorch model in float64 against the interpreter, layer by layer."""
    double = copy.deepcopy(model).double().eval()
    for module in double.modules():
        if isinstance(module, LIF):  # as in float32, where the file's threshold comes from
            module.v_threshold = float(np.float32(module.v_threshold))
    ran = iter(traced.observed)

    def differing(expected: np.ndarray) -> int:
        _, signal = next(ran)
        found = assembled(signal, names, reference.spikes)
        if found.size != expected.size:  # the model will fail by itself
            return expected.size
        return int((found.reshape(expected.shape) != expected).sum())

    seen, prediction = observe(double, traced, np.asarray(samples, np.float64), differing)
    layers: dict[str, int] = {}
    for (layer, _), count in zip(traced.observed, seen, strict=True):
        layers[layer] = layers.get(layer, 0) + count
    error = float(np.abs(prediction - reference.prediction).max())
    agree = bool((prediction.argmax(1) == reference.prediction.argmax(1)).all())
    reader = "the model (PyTorch, float64) and spikeport's interpreter (NumPy, float64)"
    return _witness(reader, layers, error, agree, _limit(OUTPUT_TOLERANCE, prediction))


def _limit(tolerance: float, outputs: np.ndarray) -> float:
    return tolerance * max(1.0, float(np.abs(outputs).max()))


def observe(
    model: nn.Module, traced: Traced, samples: np.ndarray, look: Callable[[np.ndarray], Any] = np.copy
) -> tuple[list[Any], np.ndarray]:
    """What ``look`` makes of the outputs of the layers of ``traced.observed``, each [T, N, ...], and the logits [N, K].

    Args:
        model: the traced one, in evaluation mode; samples have its dtype.

    Raises:
        SpikeportError: the model itself fails.
    """
    seen: list[Any] = []
    wanted = {layer for layer, _ in traced.observed}

    def keep(layer: str, output: torch.Tensor) -> None:
        seen.append(look(output.unflatten(0, (traced.time_steps, -1)).numpy()))  # what follows may add to it in place

    layers = [(layer, module) for layer, module in model.named_modules() if layer in wanted]
    x = torch.from_numpy(samples)
    try:
        with watched(layers, keep), torch.no_grad():
            prediction: np.ndarray = model(x if traced.constant_input else x.flatten(0, 1)).numpy()
    except Exception as error:  # the user's code may raise anything
        raise SpikeportError(f"{type(model).__name__} fails on the samples: {reason(error)}") from error
    return seen, prediction


def assembled(signal: Signal, names: dict[Node, str], spikes: dict[str, np.ndarray]) -> np.ndarray:
    """What a layer of the model puts out, [T, N, C, H, W], from the spikes of the neurons it became, [T, N, ...]."""
    found: np.ndarray | None = None
    for term in signal.terms:
        maps = spikes[names[term.node]]
        maps = maps.reshape(*maps.shape[:2], *term.node.shape)
        if len(signal.terms) == 1 and term.whole:
            return maps
        if found is None:
            found = np.zeros((*maps.shape[:2], *signal.shape), np.int8)
        used = np.flatnonzero(term.index >= 0)
        found[:, :, used] += maps[:, :, term.index[used]]
    assert found is not None
    return found


def verify_owner(original: nn.Module, adopted: nn.Module, samples: np.ndarray, traced: Traced) -> Witness:
    """A model of another framework, run by that framework in float64, against what it became here."""
    steps = traced.time_steps
    theirs, outputs = owner_forward(original, samples, steps)
    double = copy.deepcopy(adopted).double().eval()
    ours: dict[str, np.ndarray] = {}

    def keep(name: str, y: torch.Tensor) -> None:
        ours[name] = y.unflatten(0, (steps, -1)).numpy().copy()

    with watched([(name, module) for name, module in double.named_modules() if name in theirs], keep), torch.no_grad():
        x = torch.from_numpy(np.asarray(samples, np.float64))
        prediction = double(x if traced.constant_input else x.flatten(0, 1)).numpy()
    same_shape = {name: ours[name].shape == spikes.shape for name, spikes in theirs.items()}
    layers = {n: int((ours[n] != spikes).sum()) if same_shape[n] else spikes.size for n, spikes in theirs.items()}
    agree = bool((prediction.argmax(1) == outputs.mean(0).argmax(1)).all())
    packages = {owner(m) for m in original.modules()} - {None}
    error = float(np.abs(prediction - outputs.mean(0)).max())
    reader = f"the model as {' and '.join(sorted(map(str, packages)))} runs it (float64)"
    return _witness(reader, layers, error, agree, _limit(OUTPUT_TOLERANCE, outputs))


def _against_reference(
    label: str, graph: nir.NIRGraph, reference: Trajectory, reading: readers.Reading, tie: float
) -> Witness:
    layers = {n: int((reading.spikes[n] != s).sum()) for n, s in reference.spikes.items()}
    errors = np.abs(reading.outputs - reference.outputs).max((0, 2))
    agree = bool((reading.outputs.mean(0).argmax(1) == reference.prediction.argmax(1)).all())
    limit = _limit(FLOAT32_TOLERANCE if tie == TIE else OUTPUT_TOLERANCE, reference.outputs)
    witness = _witness(label, layers, float(errors.max()), agree, limit)
    ties, unexplained = explain_flips(graph, reference, reading.spikes, tie) if any(layers.values()) else ([], 0)
    if unexplained:
        return replace(witness, status="differs", note=f"{unexplained} flips away from any tie")
    # A flip moves the class currents of its sample; those of the others follow from equal spikes.
    same = np.ones(len(errors), bool)
    for name, spikes in reference.spikes.items():
        if layers[name]:
            same &= (reading.spikes[name] == spikes).swapaxes(0, 1).reshape(len(errors), -1).all(1)
    error = float(errors[same].max(initial=0.0))
    if not error <= limit:
        note = f"class currents differ by {error:.3g} where no spike does, at most {limit:.3g} is rounding"
        return replace(witness, status="differs", note=note)
    return replace(witness, status="agrees up to ties" if ties else "agrees", note="", ties=tuple(ties))


def _witness(reader: str, layers: dict[str, int], error: float, agree: bool, limit: float) -> Witness:
    total = sum(layers.values())
    wrong_output = not error <= limit  # NaN is wrong too
    return Witness(
        reader=reader,
        status="differs" if total or wrong_output else "agrees",
        note=f"class currents differ by {error:.3g}" if wrong_output else "",
        layers=layers,
        differing_spikes=total,
        first_difference=next((layer for layer, count in layers.items() if count), None),
        output_error=error,
        predictions_agree=agree,
    )


def explain_flips(
    graph: nir.NIRGraph, reference: Trajectory, spikes: dict[str, np.ndarray], tie: float = TIE
) -> tuple[list[dict[str, Any]], int]:
    """The flips that are ties, and the number that neither are nor follow from an earlier flip of the sample.

    A flip follows from an earlier one where, in the same sample, a neuron of this layer flipped at an earlier
    step or one of a layer upstream flipped at this step or before.
    """
    ties: list[dict[str, Any]] = []
    unexplained = 0
    never = metadata_of(graph).time_steps
    # node -> per sample, the first step at which something upstream of its output flipped
    upstream: dict[str, np.ndarray] = {}
    for name, _, before in ordered(graph):
        entering = np.min(np.broadcast_arrays(*(upstream[b] for b in before)), axis=0) if before else np.array(never)
        if name not in spikes:
            upstream[name] = entering
            continue
        flips = np.argwhere(spikes[name] != reference.spikes[name])
        samples = reference.spikes[name].shape[1]
        entering = np.broadcast_to(entering, samples)
        own = np.full(samples, never)
        np.minimum.at(own, flips[:, 1], flips[:, 0])
        threshold = np.asarray(graph.nodes[name].v_threshold)
        # Rounding grows with the membranes; those of some networks are far below 1.
        least = min(1.0, float(np.abs(reference.margins[name] + threshold).max())) if len(flips) else 1.0
        for flip in flips:
            step, sample = int(flip[0]), int(flip[1])
            margin = float(reference.margins[name][tuple(flip)])
            at = float(threshold[tuple(flip[2:])])
            size = max(least, abs(at), abs(margin + at))
            if abs(margin) <= tie * size:
                ties.append({"layer": name, "step": step, "sample": sample, "distance": margin})
            elif not (entering[sample] <= step or own[sample] < step):
                unexplained += 1
        upstream[name] = np.minimum(entering, own)
    return ties, unexplained

"""A network in Loihi's terms: integers only, no framework, one file."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.files import reading_archive, tuples, write_archive
from spikeport.core.geometry import Pair, Shape

FORMAT = 1

#: What a population may hold as an array, one integer per channel.
PER_CHANNEL = ("du", "dv", "vth")
#: The name of the input in ``Synapse.pre``.
INPUT = "input"
#: Of ``LoihiProgram.input_mode``.
INPUT_MODES = ("graded", "host-current")
#: Graded input: 8 bits with sign, symmetric, so that 0 stays 0 and padding stays exact.
INPUT_MAX = 127

Samples = TypeVar("Samples", bound=Any)  #: arrays or tensors


@dataclass(frozen=True, eq=False)
class Population:
    """A map of equal neurons.

    Attributes:
        name: unique in the program.
        source: the layer of the PyTorch model whose spikes these are ("" where the compiler added it).
        shape: channels, height, width.
        du, dv: decay of current and voltage in 1/4096 (du = 4095: no current memory; dv = 0: no leak); int32 [C]
            where channels differ.
        vth: threshold; the neuron fires where v > vth * 64; int32 [C] where channels differ.
        bias_mant: int32 [C], or [C, H, W] where it differs within maps; every step adds ``bias_mant << bias_exp`` to v.
            (An engine makes it [N, C, H, W] where the host writes one for every neuron and sample.)
        bias_exp: 0..7.
        scale: S; an integer current of S is a current of 1 in the network's own units, times the gain.
        depth: synapses between the input and this population; its step t is the chip's step t + depth.
        spiking: False for the integrators that sum the class currents (they never fire).
    """

    name: str
    source: str
    shape: Shape
    du: int | np.ndarray
    dv: int | np.ndarray
    vth: int | np.ndarray
    bias_mant: np.ndarray
    bias_exp: int
    scale: float
    depth: int
    spiking: bool = True

    @property
    def neurons(self) -> int:
        return int(np.prod(self.shape))

    @property
    def bias(self) -> np.ndarray:
        """What every step adds to v: int64 [C, 1, 1], [C, H, W] or [N, C, H, W]."""
        bias = self.bias_mant.astype(np.int64) << self.bias_exp
        return bias[:, None, None] if bias.ndim == 1 else bias


@dataclass(frozen=True, eq=False)
class Synapse:
    """A convolution from ``pre`` (a population or ``INPUT``) to ``post``; a dense layer is one whose kernel
    covers the map.

    Attributes:
        source: the layer of the PyTorch model it comes from ("" where the compiler added it).
        composed: the layers behind that one, up to the neurons, which the compiler made one synapse with it.
        weight: int8 [out, in / groups, kernel height, kernel width], PyTorch's orientation.
        host: computed by the host, which adds the result to the bias of ``post``; ``weight`` is float64 then, and its
            unit that of v.
        links: int64 [in], the output channels that each input channel reaches, where the network leaves some out
            (a convolution over part of a concatenation); None where each reaches all of its group.
    """

    name: str
    source: str
    pre: str
    post: str
    weight: np.ndarray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    links: np.ndarray | None = None
    host: bool = False
    composed: tuple[str, ...] = ()

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, Pair]:
        """Kernel, stride, padding and dilation, as ``core.geometry`` takes them."""
        return (self.weight.shape[2], self.weight.shape[3]), self.stride, self.padding, self.dilation

    @property
    def outputs_reached(self) -> np.ndarray:
        """Output channels that each input channel reaches, int64 [in]."""
        if self.links is not None:
            return self.links
        out, per_group = self.weight.shape[:2]
        return np.full(per_group * self.groups, out // self.groups)


@dataclass(frozen=True, eq=False)
class LoihiProgram:
    """What both engines run.

    Attributes:
        time_steps: T; every sample is held for T steps, then all neurons are reset.
        input_shape: channels, height, width of the graded input.
        input_scale: a graded input q stands for the value q * input_scale.
        input_max: the largest |q| the scales leave room for, at most ``INPUT_MAX``; 1 for spikes.
        input_mode: "graded", spikes with a payload; or "host-current", see ``targets.loihi.host``.
        held: an input sample is one tensor, held for T steps; else T tensors, one per step.
        populations: in an order in which every population follows those that feed it.
        output: the integrators; their v / 64 after T steps, over ``scale`` and T, is the mean class current.
        metadata: JSON values: class names, normalisation, where the network came from.
    """

    time_steps: int
    input_shape: Shape
    input_scale: float
    populations: tuple[Population, ...]
    synapses: tuple[Synapse, ...]
    output: str
    metadata: dict[str, Any] = field(default_factory=dict)
    input_max: int = INPUT_MAX
    held: bool = True
    input_mode: str = "graded"

    def population(self, name: str) -> Population:
        return next(p for p in self.populations if p.name == name)

    def into(self, post: str) -> list[Synapse]:
        return [s for s in self.synapses if s.post == post]

    def out_of(self, pre: str) -> list[Synapse]:
        return [s for s in self.synapses if s.pre == pre]

    def shape_of(self, pre: str) -> Shape:
        return self.input_shape if pre == INPUT else self.population(pre).shape

    def pools(self, population: Population) -> bool:
        """Whether these are the OR neurons of a max-pooling: a layer that is synapses and neurons both."""
        return bool(population.source) and any(s.source == population.source for s in self.into(population.name))

    @property
    def depth(self) -> int:
        return max(p.depth for p in self.populations)

    @property
    def takes_spikes(self) -> bool:
        """Whether the input is spikes: whole numbers up to 1, as calibrated."""
        return self.input_mode == "graded" and self.whole and self.input_max == 1

    @property
    def whole(self) -> bool:
        """Whether the input's range came from spikes or small whole numbers, which enter as they are."""
        return is_whole(self.input_scale, self.input_max)

    def quantise(self, x: np.ndarray) -> np.ndarray:
        """Float samples to the graded input, int32 [N, 1, C, H, W] where it is held, else [N, T, C, H, W].

        For "host-current" the samples themselves, float64.

        Args:
            x: [N, C, H, W], or [T, N, C, H, W] for a program whose input changes; C alone for flat inputs.

        Raises:
            SpikeportError: another shape, no samples, NaN, values outside the graded range, or fractions where the
                program takes whole numbers.
        """
        x = batch(x, self.input_shape, None if self.held else self.time_steps, "input", "program")
        x = x[:, None] if self.held else x.swapaxes(0, 1)
        if len(x) == 0:
            raise SpikeportError("zero samples to simulate; give at least one")
        if not np.isfinite(x).all():
            raise SpikeportError("the input samples hold NaN or infinity; leave those out")
        if self.whole and self.input_mode == "graded" and (x % 1).any():
            raise SpikeportError(
                f"input holds {x[x % 1 != 0][0]:.4g}, the program takes whole numbers from -{self.input_max} to "
                f"{self.input_max}, as its calibration did; compile with a calibration of such samples"
            )
        x = x.astype(np.float64)  # in half or single precision the quotient may round to another whole number
        with np.errstate(over="ignore"):
            q = np.rint(x / self.input_scale)
        if not np.abs(q).max() <= self.input_max:  # before the cast: what int32 does not hold comes out of it small
            end = self.input_max * self.input_scale
            raise SpikeportError(
                f"input reaches {np.abs(x).max():.4g}, the {self.input_mode} input ends at {end:.4g}; "
                "compile with a calibration that covers it"
            )
        return q.astype(np.int32) if self.input_mode == "graded" else x

    def digest(self) -> str:
        """SHA-256 of everything an engine runs (metadata apart)."""
        digest = hashlib.sha256()
        header, arrays = _split(self)
        header.pop("metadata")
        digest.update(json.dumps(header, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
        return digest.hexdigest()

    def save(self, path: Path | str) -> None:
        header, arrays = _split(self)
        write_archive(path, header, arrays)

    @staticmethod
    def load(path: Path | str) -> "LoihiProgram":
        """Raises SpikeportError where the file is missing, damaged, or not a program."""
        from spikeport.targets.loihi.fields import check_fields  # which imports this module

        with reading_archive(path, "a Loihi program", "`spikeport export RUN --target loihi` writes it") as archive:
            header = json.loads(str(archive["header"]))
            if "engine" in header:
                raise SpikeportError("it is a spike record")
            if header.pop("format") != FORMAT:
                raise SpikeportError("written by another version")
            populations = tuple(
                Population(**(tuples(p) | _registers(archive, p)), bias_mant=_array(archive, f"bias/{p['name']}"))
                for p in header.pop("populations")
            )
            synapses = tuple(
                Synapse(
                    **tuples(s),
                    weight=_array(archive, f"weight/{s['name']}"),
                    links=_optional(archive, f"links/{s['name']}"),
                )
                for s in header.pop("synapses")
            )
            program = LoihiProgram(**tuples(header), populations=populations, synapses=synapses)
            check_fields(program)
            return program


def is_whole(input_scale: float, input_max: int) -> bool:
    """Whether a range of the input came from spikes or small whole numbers, which enter as they are."""
    return input_scale == 1 and input_max < INPUT_MAX


def batch(x: Samples, shape: Shape, time_steps: int | None, what: str, taker: str) -> Samples:
    """Samples [N, ...], or [T, N, ...] with ``time_steps``, as [N, C, H, W], or [T, N, C, H, W].

    Args:
        shape: C, H, W; samples of a flat input may have C alone.
        what, taker: the samples and who takes them, for an error to name.

    Raises:
        SpikeportError: another shape, or another T.
    """
    leading = ("N",) if time_steps is None else (f"{time_steps}", "N")
    wanted = [shape] + ([shape[:1]] if shape[1:] == (1, 1) else [])
    if x.shape[len(leading) :] not in wanted or x.ndim < len(leading):
        takes = ", ".join((*leading, _commas(wanted[-1])))
        raise SpikeportError(f"{what} has shape {list(x.shape)}; the {taker} takes [{takes}]")
    if time_steps is not None and len(x) != time_steps:
        raise SpikeportError(f"the {what} has {len(x)} steps, the {taker} runs {time_steps}; samples are [T, N, ...]")
    return x.reshape(*x.shape[: len(leading)], *shape)


def _registers(archive: Any, population: dict[str, Any]) -> dict[str, np.ndarray]:
    """What differs between its channels."""
    stored = {field: f"{field}/{population['name']}" for field in PER_CHANNEL}
    return {field: _array(archive, name) for field, name in stored.items() if name in archive.files}


def _optional(archive: Any, name: str) -> np.ndarray | None:
    return _array(archive, name) if name in archive.files else None


def _array(archive: Any, name: str) -> np.ndarray:
    """By the name of its file: NumPy takes "a.npy" for the file of an array called "a"."""
    return archive[f"{name}.npy"]


def _split(program: LoihiProgram) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON part and the arrays of a program."""
    plain = lambda item, *skip: {f.name: getattr(item, f.name) for f in fields(item) if f.name not in skip}  # noqa: E731
    header = plain(program)
    header["format"] = FORMAT
    arrays: dict[str, Any] = {f"bias/{p.name}": p.bias_mant for p in program.populations}
    header["populations"] = []
    for p in program.populations:
        values = plain(p, "bias_mant")
        for name in PER_CHANNEL:
            if np.ndim(values[name]):
                arrays[f"{name}/{p.name}"] = values.pop(name)
        header["populations"].append(values)
    header["synapses"] = [plain(s, "weight", "links") for s in program.synapses]
    arrays.update({f"weight/{s.name}": s.weight for s in program.synapses})
    arrays.update({f"links/{s.name}": s.links for s in program.synapses if s.links is not None})
    return header, arrays


def _commas(shape: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in shape)

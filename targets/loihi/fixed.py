"""The fixed-point engine: a Loihi program on the CPU, integer for integer, many samples at a time."""

import zlib
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeport.core import geometry
from spikeport.core.progress import Progress, silent
from spikeport.targets.loihi import arithmetic
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse
from spikeport.targets.record import SpikeRecord

BATCH = 32


def simulate_fixed(
    program: LoihiProgram,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    rasters: int = 0,
    progress: Progress = silent,
) -> SpikeRecord:
    """Runs float samples [N, C, H, W] ([T, N, C, H, W] where the input changes) through the program.

    A layer of depth d does at the chip's step t + d what it does here at step t; so the layers run one after
    the other, all T steps of each at once.

    Args:
        rasters: keep the full spike maps of that many first samples.
        progress: told the number of samples done.

    Raises:
        SpikeportError: samples of another shape, none at all, NaN, or outside the graded range.
    """
    q = program.quantise(x)
    parts = []
    for start in range(0, len(q), BATCH):
        keep = max(0, min(rasters - start, BATCH))
        parts.append(_run(program, torch.from_numpy(q[start : start + BATCH]), keep))
        progress(min(start + BATCH, len(q)), len(q))
    sums = np.concatenate([p["sums"] for p in parts])
    population = program.population(program.output)
    joined: dict[str, Any] = {
        kind: {name: np.concatenate([p[kind][name] for p in parts if name in p[kind]]) for name in parts[0][kind]}
        for kind in ("spikes", "digests", "events", "rasters")
    }
    totals: dict[str, Any] = {
        kind: {name: sum(p[kind][name] for p in parts) for name in parts[0][kind]} for kind in ("wraps", "saturations")
    }
    return SpikeRecord(
        engine="fixed",
        time_steps=program.time_steps,
        program=program.digest(),
        outputs=class_currents(sums, population, program.time_steps),
        output_sums=sums,
        labels=labels,
        details={"torch": str(torch.__version__)},
        **joined,
        **totals,
    )


def class_currents(sums: np.ndarray, output: Population, time_steps: int) -> np.ndarray:
    """Integrator sums (v after T steps) to mean class currents, float64."""
    return sums / (output.scale * (1 << arithmetic.SHIFT) * time_steps)


def _run(program: LoihiProgram, q: Tensor, keep: int) -> dict:
    steps, n = program.time_steps, len(q)
    # A held input's currents are computed once and count at every step.
    values: dict[str, Tensor] = {INPUT: q.float().transpose(0, 1).flatten(0, 1)}
    out: dict = {k: {} for k in ("spikes", "digests", "events", "rasters", "wraps", "saturations")}
    for population in program.populations:
        held = torch.zeros(n, *population.shape, dtype=torch.int64)
        moving = torch.zeros(steps, n, *population.shape, dtype=torch.int64)
        incoming = program.into(population.name)
        recurrent = [s for s in incoming if s.pre == population.name]
        for synapse in [s for s in incoming if s.pre != population.name]:
            source = values[synapse.pre]
            current = convolve(source, synapse)
            events = event_counts(source != 0, synapse)
            if synapse.pre == INPUT and program.held:
                held += current
                out["events"][synapse.name] = np.repeat(events[:, None], steps, axis=1)
            else:
                moving += current.unflatten(0, (steps, n))
                out["events"][synapse.name] = events.reshape(steps, n).T.copy()
        spikes = _population(population, held, moving, recurrent, out)
        if population.spiking:
            values[population.name] = spikes.flatten(0, 1).float()
            _observe(population, spikes, keep, out)
        else:
            out["sums"] = out.pop("v").flatten(1).numpy()
    return out


def _population(population: Population, held: Tensor, moving: Tensor, recurrent: list[Synapse], out: dict) -> Tensor:
    """Spikes [T, N, C, H, W]; through recurrent synapses they return one step later."""
    bias = torch.from_numpy(population.bias)
    u = torch.zeros_like(held)
    v = torch.zeros_like(held)
    wraps = saturations = 0
    spikes = torch.empty(moving.shape, dtype=torch.bool)
    for t, a in enumerate(moving.unbind(0)):
        for synapse in recurrent if t else ():
            a = a + convolve(spikes[t - 1].float(), synapse)
        u, v, wrapped, saturated = arithmetic.charge(u, v, a + held, population.du, population.dv, bias)
        spikes[t], v = arithmetic.fire(v, population.vth)
        wraps, saturations = wraps + wrapped, saturations + saturated
    for synapse in recurrent:
        events = event_counts(spikes.flatten(0, 1), synapse)
        out["events"][synapse.name] = events.reshape(spikes.shape[:2]).T.copy()
    out["wraps"][population.name], out["saturations"][population.name] = wraps, saturations
    if not population.spiking:
        out["v"] = v
    return spikes


def _observe(population: Population, spikes: Tensor, keep: int, out: dict) -> None:
    """Counts and checksums of spikes [T, N, C, H, W]."""
    maps = spikes.transpose(0, 1).flatten(2).numpy()
    out["spikes"][population.name] = maps.sum(2, dtype=np.int64)
    packed = np.packbits(maps, axis=2)
    out["digests"][population.name] = np.array(
        [[zlib.crc32(step.tobytes()) for step in sample] for sample in packed], dtype=np.uint32
    )
    if keep:
        out["rasters"][population.name] = spikes[:, :keep].transpose(0, 1).numpy().copy()


def convolve(x: Tensor, synapse: Synapse) -> Tensor:
    """Integer convolution of x (integers in float32, [N, C, H, W]) with the synapse's weights, exact, int64.

    float32 sums of integers are exact below 2^24 whatever their order; what is not exact are convolution
    algorithms that transform (Winograd), so each shape is probed once against float64.
    """
    weight = torch.from_numpy(synapse.weight)
    options = (synapse.stride, synapse.padding, synapse.dilation, synapse.groups)
    exact = _float32_is_exact(tuple(x.shape[1:]), tuple(weight.shape), *options, torch.get_num_threads())
    dtype = torch.float32 if exact else torch.float64
    return _conv(x.to(dtype), weight.to(dtype), *options).long()


def _conv(x: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple, groups: int) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.backends.nnpack.flags(enabled=False):
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)


@cache
def _float32_is_exact(
    shape: tuple, weight_shape: tuple, stride: tuple, padding: tuple, dilation: tuple, groups: int, threads: int
) -> bool:
    """Whether float32 convolution of this shape equals float64 on a random probe (N = 16: small batches hide it)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (16, *shape), generator=generator).double()
    weight = torch.randint(-127, 128, weight_shape, generator=generator).double()
    if float(weight.abs().flatten(1).sum(1).max()) * 127 >= 1 << 24:  # keep the probe's own sums exact
        x = x.sign()
    expected = _conv(x, weight, stride, padding, dilation, groups)
    return torch.equal(_conv(x.float(), weight.float(), stride, padding, dilation, groups).double(), expected)


def event_counts(active: Tensor, synapse: Synapse) -> np.ndarray:
    """Synaptic events per row of ``active`` [N, C, H, W] (bool): weights read and added, padding excluded."""
    reached = fan_out((active.shape[2], active.shape[3]), synapse)
    per_channel = (active * reached).sum((2, 3))
    counts: np.ndarray = (per_channel * torch.from_numpy(synapse.outputs_reached)).sum(1).numpy()
    return counts


def fan_out(size: tuple[int, int], synapse: Synapse) -> Tensor:
    """Output positions that each input position of a [H, W] map reaches, int64 [H, W]."""
    kernel = (synapse.weight.shape[2], synapse.weight.shape[3])
    return torch.from_numpy(geometry.fan_out(size, kernel, synapse.stride, synapse.padding, synapse.dilation))

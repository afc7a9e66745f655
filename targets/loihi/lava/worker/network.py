"""A LoihiProgram's file as a network of Lava processes.

Lava's layout is (width, height, channels). Every synapse costs a step: a population of depth d sees step s (from
0) of sample k at Lava's step k * T + s + d + 1 (from 1), where its neurons are reset when s = 0. So samples follow
each other without a pause, and the input for a population of depth d is delayed by d - 1 steps.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.process.process import AbstractProcess
from lava.proc.conv.process import Conv
from lava.proc.io.source import RingBuffer
from lava.proc.lif.process import LIFReset

from .convolution import fan_out
from .recorder import Plan

#: The name of the input in a program.
INPUT = "input"
#: Bits of a graded input; any number of bits above zero makes Lava take values as they are.
GRADED_BITS = 8


@dataclass(frozen=True)
class Network:
    """Lava's processes, connected.

    Attributes:
        processes: name for messages -> process.
        time_steps: T.
        samples: N.
        depth: of the deepest population; all is done after N * T + depth steps.
    """

    processes: dict[str, AbstractProcess]
    time_steps: int
    samples: int
    depth: int


def build(folder: Path, rasters: int) -> Network:
    """Reads ``program.npz`` and ``input.npy`` [N, 1 or T, C, H, W] from ``folder``; the processes write there."""
    with np.load(folder / "program.npz") as archive:
        program = json.loads(str(archive["header"]))
        arrays = {name: archive[name] for name in archive.files}
    samples = len(np.load(folder / "input.npy", mmap_mode="r"))
    depths = {population["name"]: population["depth"] for population in program["populations"]}
    shapes = {population["name"]: population["shape"] for population in program["populations"]}
    shapes[INPUT] = program["input_shape"]
    common = {"time_steps": program["time_steps"], "samples": samples}
    leaving: dict[str, dict[str, np.ndarray]] = {}
    synapses = [synapse for synapse in program["synapses"] if not synapse["host"]]
    for synapse in synapses:
        weight, links = arrays[f"weight/{synapse['name']}"], arrays.get(f"links/{synapse['name']}")
        reached = _events_of_one(synapse, shapes[synapse["pre"]], weight, links)
        leaving.setdefault(_origin(synapse, depths), {})[synapse["name"]] = reached

    processes: dict[str, AbstractProcess] = {}
    for index, population in enumerate(program["populations"]):
        name = population["name"]
        path = folder / f"population-{index}.npz"
        kept = rasters if population["spiking"] else 0
        plan = Plan(path, population["depth"], rasters=kept, fan_out=leaving.get(f"population {name}", {}), **common)
        process = _neurons(population, arrays, plan)
        process.proc_params["biases"] = folder / f"bias-{index}.npy"
        processes[f"population {name}"] = process
    for synapse in synapses:
        origin = _origin(synapse, depths)
        if origin not in processes:
            delay = depths[synapse["post"]] - 1
            plan = Plan(folder / f"source-{delay}.npz", delay, fan_out=leaving[origin], **common)
            processes[origin] = _source(program["input_shape"], folder / "input.npy", plan)
        bits = GRADED_BITS if synapse["pre"] == INPUT else 0
        weight = arrays[f"weight/{synapse['name']}"]
        process = _convolution(synapse, weight, shapes[synapse["pre"]], bits)
        processes[origin].s_out.connect(process.s_in)
        process.a_out.connect(processes[f"population {synapse['post']}"].a_in)
        processes[f"synapse {synapse['name']}"] = process
    return Network(processes, program["time_steps"], samples, max(depths.values()))


def _origin(synapse: dict[str, Any], depths: dict[str, int]) -> str:
    """The process a synapse leaves: a population, or the source with the delay its target needs."""
    if synapse["pre"] != INPUT:
        return f"population {synapse['pre']}"
    return f"input delayed by {depths[synapse['post']] - 1}"


def _source(shape: list[int], samples: Path, plan: Plan) -> RingBuffer:
    process = RingBuffer(data=np.zeros((*reversed(shape), 1), np.int32))
    process.proc_params["samples"] = samples
    process.proc_params["plan"] = plan
    return process


def _neurons(population: dict[str, Any], arrays: dict[str, np.ndarray], plan: Plan) -> LIFReset:
    shape = tuple(reversed(population["shape"]))
    process = LIFReset(
        shape=shape,
        bias_mant=np.broadcast_to(arrays[f"bias/{population['name']}"].T, shape).copy(),
        bias_exp=population["bias_exp"],
        reset_interval=plan.time_steps,
        reset_offset=plan.delay + 1,
    )
    for name in ("du", "dv", "vth"):
        values = population[name] if name in population else arrays[f"{name}/{population['name']}"]
        # Lava's own parameters take one number; its model takes whatever its variable starts with.
        getattr(process, name).init = values if np.ndim(values) == 0 else np.broadcast_to(values, shape).copy()
    process.proc_params["plan"] = plan
    return process


def _convolution(synapse: dict[str, Any], weight: np.ndarray, shape: list[int], bits: int) -> Conv:
    return Conv(
        # PyTorch correlates, Lava convolves.
        weight=weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1).astype(np.int32),
        input_shape=tuple(reversed(shape)),
        stride=tuple(reversed(synapse["stride"])),
        padding=tuple(reversed(synapse["padding"])),
        dilation=tuple(reversed(synapse["dilation"])),
        groups=synapse["groups"],
        num_message_bits=bits,
    )


def _events_of_one(
    synapse: dict[str, Any], shape: list[int], weight: np.ndarray, links: np.ndarray | None
) -> np.ndarray:
    """Synaptic events that each active neuron causes: int64 [W, H, C]."""
    _, height, width = shape
    kernel = (weight.shape[3], weight.shape[2])
    stride, padding, dilation = ((x, y) for y, x in (synapse[name] for name in ("stride", "padding", "dilation")))
    if links is None:
        links = np.full(shape[0], weight.shape[0] // synapse["groups"])
    return fan_out((width, height), kernel, stride, padding, dilation)[:, :, None] * links

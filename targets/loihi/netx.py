"""A chain of layers as a ``.net`` file, which lava-dl's ``netx.hdf5.Network`` loads and runs in Lava with equal spikes.

The format has no branches, and one exponent for all biases; the schema is that of lava-dl 0.6,
``lava.lib.dl.netx.hdf5``.
"""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.files import replacing
from spikeport.targets.loihi.arithmetic import BIAS_MANT_MAX, SHIFT
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse

#: netx builds every neuron with this exponent: its biases are whole weight steps.
BIAS_EXP = SHIFT
#: Groups and sides of a kernel are 8 bits with sign in Lava's convolution, which netx builds.
BYTE_MAX = 127
#: What netx must be told to take inputs as they are; 0 would make every input a spike.
MESSAGE_BITS = 8


def for_netx(program: LoihiProgram) -> LoihiProgram:
    """The program with its biases rounded to whole weight steps, so that a ``.net`` file holds them.

    Raises:
        SpikeportError: a program that is no chain, or that netx cannot hold, by population and remedy.
    """
    _chain(program)
    populations = []
    for p in program.populations:
        if p.bias_mant.ndim > 1:
            raise SpikeportError(
                f"{p.name}: its bias differs within maps (a convolution that pads, behind a linear layer), and a .net "
                "file holds one per channel; export without --net, or put a LIF between the two"
            )
        mant = np.rint(p.bias[:, 0, 0] / (1 << BIAS_EXP)).astype(np.int32)
        if np.abs(mant).max(initial=0) > BIAS_MANT_MAX:
            raise SpikeportError(
                f"{p.name}: a bias of {np.abs(mant).max()} weight steps, a .net file holds {BIAS_MANT_MAX}; "
                "export without --net, or train with smaller biases"
            )
        populations.append(replace(p, bias_mant=mant, bias_exp=BIAS_EXP))
    return replace(program, populations=tuple(populations))


def write_net(program: LoihiProgram, path: Path | str) -> None:
    """Writes a program of ``for_netx`` as a ``.net`` file.

    ``hdf5.Network(path, **options)`` loads it, with the options that the file's attributes hold: ``reset_interval`` (T:
    samples follow each other without a pause), ``reset_offset`` and ``input_message_bits``. The last layer never
    fires: ``v / 64 / output_scale / T`` in its last step is the mean class current. A graded input q stands for
    ``q * input_scale``.

    Raises:
        SpikeportError: see ``for_netx``.
    """
    chain = _chain(program)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["reset_interval"] = program.time_steps
        file.attrs["reset_offset"] = 1
        file.attrs["input_message_bits"] = MESSAGE_BITS
        file.attrs["input_scale"] = program.input_scale
        file.attrs["output_scale"] = program.population(program.output).scale
        first = file.create_group("layer/0")
        _write(first, type=np.array([b"input"]), shape=program.input_shape)
        for index, (synapse, population) in enumerate(chain, 1):
            _write_layer(file.create_group(f"layer/{index}"), synapse, population)


def _write_layer(group: h5py.Group, synapse: Synapse, population: Population) -> None:
    # A dense layer is a convolution here too: netx's dense one rounds weights by their signs.
    _write(
        group,
        type=np.array([b"conv"]),
        shape=population.shape,
        weight=synapse.weight.astype(np.int32),
        bias=population.bias_mant,
        stride=synapse.stride,
        padding=synapse.padding,
        dilation=synapse.dilation,
        groups=synapse.groups,
    )
    neuron = group.create_group("neuron")
    # Signed: netx subtracts from them, and 0 - 1 must be -1.
    decays = {"iDecay": np.int32(population.du + 1), "vDecay": np.int32(population.dv)}
    _write(neuron, type=np.array([b"CUBA"]), **decays, vThMant=np.int32(population.vth))


def _write(group: h5py.Group, **values: object) -> None:
    for name, value in values.items():
        group[name] = value


def _chain(program: LoihiProgram) -> list[tuple[Synapse, Population]]:
    """Every population with the one synapse into it, in order. Raises SpikeportError where there is no such order."""
    for pre in (INPUT, *(p.name for p in program.populations if p.name != program.output)):
        into = [synapse.post for synapse in program.out_of(pre)]
        if len(into) != 1:
            raise SpikeportError(
                f"{pre}: leads to {', '.join(into) or 'nothing'}; a .net file holds a chain of layers only; "
                "export without --net"
            )
    if program.input_mode != "graded":
        raise SpikeportError(
            f"{INPUT}: a .net file has no place for what the host computes; export with `--input graded`"
        )
    chain = [(program.into(population.name)[0], population) for population in program.populations]
    for synapse, population in chain:
        for what, size in (("groups", synapse.groups), ("a kernel side", max(synapse.weight.shape[2:]))):
            if size > BYTE_MAX:
                raise SpikeportError(
                    f"{population.name}: {what} of {size}, Lava's convolution takes {BYTE_MAX}; export without --net"
                )
        for what in ("du", "dv", "vth"):
            if np.ndim(getattr(population, what)):
                raise SpikeportError(
                    f"{population.name}: {what} differs between channels, netx takes one; export without --net"
                )
    return chain

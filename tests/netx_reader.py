"""Runs a .net file with lava-dl's own netx, inside the Lava environment: python netx_reader.py WORKER NET INPUT OUT.

INPUT.npy holds integers [N, T, C, H, W]; OUT.npz gets spikes [N, T, C, H, W] of every layer and the last one's sums.
"""

import os
import sys
import types
from pathlib import Path

import h5py
import numpy as np


def main(worker: str, net: str, inputs: str, out: str) -> None:
    sys.path.insert(0, worker)
    from worker.shims import import_lava

    import_lava()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    with h5py.File(net) as file:
        options = {name: int(file.attrs[name]) for name in ("reset_interval", "reset_offset", "input_message_bits")}
    network = import_netx().Network(net_config=net, **options)
    x = np.load(inputs)  # [N, T, C, H, W]
    samples, steps = x.shape[:2]
    depth = len(network.layers)
    total = samples * steps + depth
    stream = x.reshape(-1, *x.shape[2:]).transpose(3, 2, 1, 0)
    source = Source(data=np.concatenate([stream, np.zeros((*stream.shape[:3], depth))], axis=3).astype(np.int32))
    source.s_out.connect(network.inp)
    sinks = [Sink(shape=layer.out.shape, buffer=total) for layer in network.layers]
    for layer, sink in zip(network.layers, sinks, strict=True):
        layer.out.connect(sink.a_in)
    last = network.layers[-1].neuron
    source.create_runtime(run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    sums = []
    for sample in range(samples):
        source.run(condition=RunSteps(num_steps=steps + (depth if sample == 0 else 0)))
        sums.append(last.v.get().ravel())
    found = {"sums": np.array(sums)}
    for index, sink in enumerate(sinks):
        seen = sink.data.get()[..., index + 1 : index + 1 + samples * steps].transpose(3, 2, 1, 0)
        found[f"layer{index}"] = seen.reshape(samples, steps, *seen.shape[1:]).astype(bool)
    source.stop()
    np.savez(out, **found)


def import_netx() -> types.ModuleType:
    """netx's reader of files; its package's own ``__init__`` imports torch and what plots with it."""
    import lava

    folders = [folder for path in lava.__path__ if (folder := Path(path) / "lib/dl/netx").is_dir()]
    for name in ("netx", "netx.sequential_modules", "slayer", "slayer.neuron", "slayer.neuron.rf"):
        module = types.ModuleType(f"lava.lib.dl.{name}")
        module.__path__ = [str(folder) for folder in folders] if name == "netx" else []
        # Lava runs every file beside a process's; an empty path would be the working directory.
        module.__file__ = str(folders[0] / "sequential_modules.py")
        sys.modules[module.__name__] = module
    sys.modules["lava.lib.dl.slayer.neuron.rf"].neuron_params = None  # type: ignore[attr-defined]
    from lava.lib.dl.netx import hdf5

    return hdf5


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)

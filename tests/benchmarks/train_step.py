"""A training step of SNN-SqueezeNet-P side by side: our LIF, BatchNorm and LIF in one, SpikingJelly, snnTorch, ReLU.

    python tests/benchmarks/train_step.py [--device cuda] [--threads 2] [--precisions fp32 bf16]
                                          [--layouts contiguous channels-last] [--batch 16] [--json FILE]

The same network with the same weights every time; only what stands after each BatchNorm differs. The first
convolution runs once on the N images, everything after the first activation on T*N: "ReLU" repeats its output T
times, so that it has the convolutions of the spiking network and none of its neurons. A step is forward, backward
and an SGD update. bf16 runs under autocast. The ratios compare with a peer in the layout that suits it better.
On a GPU, "peak MiB" is what a step holds at most beyond parameters and images, and the batch is 512.
"""

import argparse
import itertools
import math
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lif import Action, for_json, machine, measure, print_table, usable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spikeport.core import LIF, ModelSpec, Twin
from spikeport.core.files import write_json
from spikeport.core.models.layers import fuse


class SpikingJelly(nn.Module):
    """LIFNode over time folded into the batch, as our LIF."""

    def __init__(self, steps: int, constant: bool) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.steps, self.constant = steps, constant
        self.node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        return self.node(_over_time(x, self.steps, self.constant)).flatten(0, 1)


class SnnTorch(nn.Module):
    """Leaky with a hard reset, step by step."""

    def __init__(self, steps: int, constant: bool) -> None:
        super().__init__()
        import snntorch
        from snntorch import surrogate

        self.steps, self.constant = steps, constant
        options = {"spike_grad": surrogate.atan(2.0), "reset_mechanism": "zero", "reset_delay": False}
        self.node = snntorch.Leaky(beta=0.5, threshold=1.0, **options)

    def forward(self, x: Tensor) -> Tensor:
        membrane = self.node.init_leaky()
        spikes = []
        for current in _over_time(x * 0.5, self.steps, self.constant).unbind(0):
            s, membrane = self.node(current, membrane)
            spikes.append(s)
        return torch.cat(spikes)


class RepeatedReLU(nn.Module):
    def __init__(self, steps: int, constant: bool) -> None:
        super().__init__()
        self.copies = steps if constant else 1

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().repeat(self.copies, 1, 1, 1) if self.copies > 1 else x.relu()


def _over_time(x: Tensor, steps: int, constant: bool) -> Tensor:
    return x.expand(steps, *x.shape) if constant else x.unflatten(0, (steps, -1))


PEERS: dict[str, type[nn.Module]] = {"SpikingJelly": SpikingJelly, "snnTorch": SnnTorch, "ReLU": RepeatedReLU}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Case = tuple[str, str, str]  # precision, layout, name
NAMES = ("spikeport", "spikeport-fused", *PEERS)


def network(name: str, steps: int) -> nn.Module:
    """SNN-SqueezeNet-P with the neurons of ``name``; "spikeport-fused": BatchNorm and LIF in one, as in training."""
    model = ModelSpec(twin=Twin("snn", time_steps=steps)).build(seed=0)
    for module in list(model.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, LIF) and name in PEERS:
                setattr(module, child_name, PEERS[name](steps, child.constant_input))
    if name == "spikeport-fused":
        fuse(model)
    return model


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, dtype: torch.dtype
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        loss = cross_entropy(model(images).float(), labels)
    loss.backward()
    optimizer.step()


def peak_memory(action: Action, device: torch.device) -> float:
    """MiB that ``action`` holds at most beyond what there was before; NaN on a CPU, which does not count."""
    if device.type != "cuda":
        return math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--batch", type=int, help="default: 16; on a GPU 512")
    parser.add_argument("--steps", type=int, default=4, help="time steps")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = usable(arguments.device)
    samples = arguments.batch or (512 if device.type == "cuda" else 16)

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (samples,), generator=generator).to(device)
    rows: list[dict[str, Any]] = []
    failed = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        actions: dict[Case, Action] = {}
        for precision, layout, name in itertools.product(arguments.precisions, arguments.layouts, arguments.names):
            batch = images.to(device, memory_format=LAYOUTS[layout])
            model = network(name, arguments.steps).to(device, memory_format=LAYOUTS[layout])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            action = partial(step, model, optimizer, batch, labels, DTYPES[precision])
            try:
                action()
                actions[precision, layout, name] = action
            except Exception as error:  # a peer's; the others are measured
                if name not in PEERS:
                    raise
                failed.append(f"{name}, {precision}, {layout} failed: {type(error).__name__}: {error}")
        times = measure(actions, arguments.rounds, device)
        peaks = {case: peak_memory(action, device) for case, action in actions.items()}
        for case in actions:
            precision = case[0]
            row = {"threads": threads, "precision": precision, "layout": case[1], "network": case[2], "ms": times[case]}
            row["SpikingJelly fp32 / it"] = best(times, "fp32", "SpikingJelly") / times[case]
            row["SpikingJelly / it"] = best(times, precision, "SpikingJelly") / times[case]
            row["it / ReLU"] = times[case] / best(times, precision, "ReLU")
            if device.type == "cuda":
                row |= {
                    "peak MiB": peaks[case],
                    "peak / SpikingJelly": peaks[case] / best(peaks, precision, "SpikingJelly"),
                }
            rows.append(row)
    print_table(rows)
    if arguments.json:
        about = {"device": machine(device), "torch": torch.__version__, "batch": samples, "failed": failed}
        write_json(arguments.json, about | {"rows": for_json(rows)})
    if failed:
        sys.exit("\n".join(failed))


def best(values: dict[Case, float], precision: str, name: str) -> float:
    """``name`` in the layout that suits it better; NaN where it did not run."""
    found = [value for (own, _, who), value in values.items() if (own, who) == (precision, name)]
    return min(found, default=math.nan)


if __name__ == "__main__":
    main()

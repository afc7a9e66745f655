"""A training step of SNN-SqueezeNet-P side by side: our LIF, BatchNorm and LIF in one, SpikingJelly, snnTorch, ReLU.

    python tests/benchmarks/train_step.py [--threads 2] [--precisions fp32 bf16] [--batch 16] [--json FILE]

The same network with the same weights every time; only what stands after each BatchNorm differs. The first
convolution runs once on the N images, everything after the first activation on T*N: "ReLU" repeats its output T
times, so that it has the convolutions of the spiking network and none of its neurons. A step is forward, backward
and an SGD update.
"""

import argparse
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from lif import Action, measure, print_table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spikeport.core import LIF, ModelSpec, Twin
from spikeport.core.files import write_json
from spikeport.core.kernels.batch_norm_lif import BatchNormLIF


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
NAMES = ("spikeport", "spikeport-fused", *PEERS)


def network(name: str, steps: int) -> nn.Module:
    """SNN-SqueezeNet-P with the neurons of ``name``; "spikeport-fused": with BatchNorm and LIF in one."""
    model = ModelSpec(twin=Twin("snn", time_steps=steps)).build(seed=0)
    for module in list(model.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, LIF) and name in PEERS:
                setattr(module, child_name, PEERS[name](steps, child.constant_input))
            elif isinstance(child, LIF) and name == "spikeport-fused":
                module.bn = BatchNormLIF(module.bn.num_features, steps, child.constant_input)
                setattr(module, child_name, nn.Identity())
    return model


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, dtype: torch.dtype
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        loss = cross_entropy(model(images).float(), labels)
    loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="time steps")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--channels-last", action="store_true", help="for all contenders")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device(arguments.device)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch, 3, 32, 32, generator=generator).to(device, memory_format=layout)
    labels = torch.randint(10, (arguments.batch,), generator=generator).to(device)
    rows: list[dict[str, Any]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        actions: dict[str, Action] = {}
        for precision in arguments.precisions:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            for name in arguments.names:
                model = network(name, arguments.steps).to(device, memory_format=layout)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                actions[f"{name} {precision}"] = lambda model=model, optimizer=optimizer, dtype=dtype: step(
                    model, optimizer, images, labels, dtype
                )
        times = measure(actions, arguments.rounds, device)
        for label, milliseconds in times.items():
            precision = label.split()[1]
            row = {"threads": threads, "network": label, "ms": milliseconds}
            row["SpikingJelly fp32 / it"] = times.get("SpikingJelly fp32", math.nan) / milliseconds
            row["SpikingJelly, same precision / it"] = times.get(f"SpikingJelly {precision}", math.nan) / milliseconds
            row["it / ReLU, same precision"] = milliseconds / times.get(f"ReLU {precision}", math.nan)
            rows.append(row)
    print_table(rows)
    if arguments.json:
        write_json(arguments.json, {"device": str(device), "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()

"""LIF side by side: ours, SpikingJelly, snnTorch, torch.compile of a plain loop, and the bound.

    python tests/benchmarks/lif.py [--threads 1 2] [--dtypes fp32] [--steps 4 16] [--mib 16] [--json FILE]

One process, the same input, the contenders in turn within every round, medians over the rounds. The bound moves
the bytes LIF has to move and does nothing else: a copy forward, a product of two tensors backward, into memory
that is there already. Before the clock starts, every contender's spikes and gradients are compared with ours.
"""

import argparse
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from spikeport.core import LIF
from spikeport.core.files import write_json

Action = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BOUND = "bound"


def measure(actions: dict[Name, Action], rounds: int, device: torch.device) -> dict[Name, float]:
    """Median milliseconds of every action; each runs once a round, in random order: noise falls on all alike."""
    times: dict[Name, list[float]] = {name: [] for name in actions}
    order = random.Random(0)
    for number in range(rounds + 2):
        for name in order.sample(list(actions), len(actions)):
            elapsed = _clock(actions[name], device)
            if number >= 2:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def _clock(action: Action, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        action()
        return 1e3 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows with the same keys, numbers to two digits."""
    text = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *text]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


class ArcTan(torch.autograd.Function):
    """A step with the arc tangent's derivative, as a user would write it: alpha 2, u >= 0 fires."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grads[0] / (1 + (torch.pi * u).square())


def plain_loop(x: Tensor) -> Tensor:
    v = torch.zeros_like(x[0])
    spikes = []
    for current in x.unbind(0):
        h = v * 0.5 + current * 0.5
        s = ArcTan.apply(h - 1)
        v = h * (1 - s)
        spikes.append(s)
    return torch.stack(spikes)


def contenders(steps: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """name -> LIF of tau 2, threshold 1, hard reset to 0 and arc tangent: [T, N, ...] to spikes [T, N, ...]."""
    import snntorch
    from snntorch import surrogate as snntorch_surrogate
    from spikingjelly.activation_based import neuron, surrogate

    ours = LIF(time_steps=steps)
    peer = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")
    leaky = snntorch.Leaky(
        beta=0.5, threshold=1.0, spike_grad=snntorch_surrogate.atan(2.0), reset_mechanism="zero", reset_delay=False
    )

    def spikingjelly(x: Tensor) -> Tensor:
        peer.reset()
        return peer(x)

    def snntorch_loop(x: Tensor) -> Tensor:
        membrane = leaky.init_leaky()
        spikes = []
        for current in (x * 0.5).unbind(0):
            s, membrane = leaky(current, membrane)
            spikes.append(s)
        return torch.stack(spikes)

    return {
        "spikeport": lambda x: ours(x.flatten(0, 1)).view_as(x),
        "SpikingJelly": spikingjelly,
        "snnTorch": snntorch_loop,
        "torch.compile": torch.compile(plain_loop, dynamic=False),
    }


def check_agreement(functions: dict[str, Callable[[Tensor], Tensor]], x: Tensor, grad: Tensor) -> None:
    """Exits where spikes or fp32 gradients differ from ours: a faster wrong answer is no contender."""
    results = {}
    for name, function in functions.items():
        leaf = x.detach().requires_grad_()
        spikes = function(leaf)
        results[name] = (spikes.detach(), torch.autograd.grad(spikes, leaf, grad)[0])
    spikes, gradient = results["spikeport"]
    for name, (other, other_gradient) in results.items():
        # snnTorch fires at h > v_threshold, the others at h >= v_threshold; below float32 some round the membrane.
        mismatch = float((other != spikes).float().mean())
        distance = float((other_gradient - gradient).abs().max() / gradient.abs().max())
        exact = x.dtype == torch.float32
        if mismatch > (1e-6 if exact else 0.05) or (exact and distance > 1e-5):
            sys.exit(f"{name}: {mismatch:.1e} of the spikes and {distance:.1e} of the gradient differ from ours")


def compare(steps: int, dtype: torch.dtype, mib: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """name -> [forward, forward + backward] in milliseconds."""
    elements = mib * 2**20 // dtype.itemsize
    batch = elements // (steps * 64 * 32 * 32)
    generator = torch.Generator().manual_seed(0)
    shape = (steps, batch, 64, 32, 32)
    x = (torch.randn(shape, generator=generator) * 1.5 + 0.5).to(device, dtype)
    grad = torch.randn(shape, generator=generator).to(device, dtype)
    functions = contenders(steps)
    check_agreement(functions, x, grad)

    out, grad_out = torch.empty_like(x), torch.empty_like(x)
    leaf = x.clone().requires_grad_()
    forward: dict[str, Action] = {BOUND: lambda: out.copy_(x)}
    both: dict[str, Action] = {BOUND: lambda: (out.copy_(x), torch.mul(x, grad, out=grad_out))}
    for name, function in functions.items():
        forward[name] = lambda function=function: _forward(function, x)
        both[name] = lambda function=function: _forward_backward(function, leaf, grad)
    times = [measure(actions, rounds, device) for actions in (forward, both)]
    return {name: [t[name] for t in times] for name in forward}


def _forward(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        function(x)


def _forward_backward(function: Callable[[Tensor], Tensor], leaf: Tensor, grad: Tensor) -> None:
    leaf.grad = None
    function(leaf).backward(grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--mib", type=int, default=16, help="size of the input")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device(arguments.device)

    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.dtypes:
            for steps in arguments.steps:
                torch.compiler.reset()
                times = compare(steps, DTYPES[name], arguments.mib, arguments.rounds, device)
                peer, bound = times["SpikingJelly"], times[BOUND]
                for contender, (forward, both) in times.items():
                    row = {"threads": threads, "dtype": name, "T": steps, "name": contender}
                    row |= {"forward ms": forward, "fwd+bwd ms": both}
                    row |= {"SpikingJelly / it": peer[1] / both, "it / bound": both / bound[1]}
                    rows.append(row)
    print_table(rows)
    if arguments.json:
        write_json(arguments.json, {"device": str(device), "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()

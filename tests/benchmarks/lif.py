"""LIF side by side: ours, SpikingJelly, snnTorch, torch.compile of a plain loop, and the bound.

    python tests/benchmarks/lif.py [--device cuda] [--threads 1 2] [--dtypes fp32] [--steps 4 16] [--mib 16]
                                   [--json FILE]

One process, the same input, the contenders in turn within every round, medians over the rounds. The bound moves
the bytes LIF has to move and does nothing else: a copy forward, a product of two tensors backward, into memory
that is there already. Before the clock starts, every contender's spikes and gradients are compared with ours; one
that differs is named at the end, and the exit status is 1.
On a GPU, SpikingJelly runs its Triton kernels, and the input is larger than any L2 cache.

"BN + LIF" compares BatchNorm and LIF in one with BatchNorm2d followed by our LIF, both training; "BN + LIF + pool" all
three in one with the three layers, on channels-last images.
"""

import argparse
import functools
import math
import os
import platform
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
# Read when SpikingJelly is imported; left to itself it takes whichever of its implementations it can.
os.environ.setdefault("SJ_LIF_CUDA_IMPLEMENTATION", "triton")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BOUND = "bound"
#: layer -> the contender that the others are compared with
PEERS = {
    "LIF": "SpikingJelly",
    "BN + LIF": "BatchNorm2d, LIF",
    "BN + LIF + pool": "BatchNorm2d, LIF, MaxPool2d",
}


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
    torch.cuda._sleep(2_000_000)  # a millisecond: Python queues the work meanwhile, the clock sees the GPU alone
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def usable(name: str) -> torch.device:
    """The device; exits where torch sees no GPU."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU; install a CUDA build of torch on a machine that has one")
    return device


def machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def for_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON knows no NaN."""
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


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


@functools.cache
def spikingjelly_lif() -> torch.nn.Module:
    from spikingjelly.activation_based import neuron, surrogate

    return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")


@functools.cache
def snntorch_leaky(device: torch.device) -> torch.nn.Module:
    import snntorch
    from snntorch import surrogate

    options = {"spike_grad": surrogate.atan(2.0), "reset_mechanism": "zero", "reset_delay": False}
    return snntorch.Leaky(beta=0.5, threshold=1.0, **options).to(device)


def contenders(steps: int, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """name -> LIF of tau 2, threshold 1, hard reset to 0 and arc tangent: [T, N, ...] to spikes [T, N, ...]."""
    ours = LIF(time_steps=steps)

    def spikingjelly(x: Tensor) -> Tensor:
        peer = spikingjelly_lif()
        peer.reset()
        return peer(x)

    def snntorch_loop(x: Tensor) -> Tensor:
        leaky = snntorch_leaky(device)
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


def norm_contenders(steps: int, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """name -> BatchNorm over 64 channels and LIF as above."""
    norm, neurons = torch.nn.BatchNorm2d(64).to(device), LIF(time_steps=steps)
    return {
        "BatchNorm and LIF in one": lambda x: neurons(x.flatten(0, 1), norm).view_as(x),
        "BatchNorm2d, LIF": lambda x: neurons(norm(x.flatten(0, 1))).view_as(x),
    }


def pool_contenders(steps: int, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """name -> BatchNorm, LIF as above and 2x2 max-pooling; [.., 64, 32, 32] is read as 64x32 pixels of 32 channels."""
    norm, neurons, pool = torch.nn.BatchNorm2d(32).to(device), LIF(time_steps=steps), torch.nn.MaxPool2d(2)

    def on_images(layers: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: layers(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    return {
        "all three in one": on_images(lambda x: neurons(x, norm, True)),
        "BatchNorm2d, LIF, MaxPool2d": on_images(lambda x: pool(neurons(norm(x)))),
    }


def disagreements(
    functions: dict[str, Callable[[Tensor], Tensor]], x: Tensor, grad: Tensor, layer: str
) -> dict[str, str]:
    """name -> how its spikes or fp32 gradients differ from the first's: a faster wrong answer is no contender.

    One that fails is taken out of ``functions``.
    """
    results: dict[str, tuple[Tensor, Tensor]] = {}
    found: dict[str, str] = {}
    for name, function in list(functions.items()):
        leaf = x.detach().requires_grad_()
        try:
            spikes = function(leaf)
            results[name] = (spikes.detach(), torch.autograd.grad(spikes, leaf, _as(grad, spikes))[0])
        except Exception as error:  # a peer's; the others are measured
            if not results:
                raise
            found[name] = f"failed: {type(error).__name__}: {error}"
            del functions[name]
    (ours, (spikes, gradient)), *_ = results.items()
    for name, (other, other_gradient) in results.items():
        # snnTorch fires at h > v_threshold, the others at h >= v_threshold; below float32 some round the membrane.
        mismatch = float((other != spikes).float().mean())
        if layer == "LIF":
            # Of 10^8 neurons some lie within a rounding of the threshold: a spike that differs changes its gradients.
            alike = (other == spikes).all(0)
            distance = float(((other_gradient - gradient).float().abs() * alike).max() / gradient.float().abs().max())
            most = (1e-6, 1e-5)
        else:  # two BatchNorms round their own way: near-ties flip, and with them single gradients
            distance = float((other_gradient - gradient).float().norm() / gradient.float().norm())
            most = (1e-5, 0.01)
        if x.dtype != torch.float32:
            most = (0.05, float("inf"))
        if mismatch > most[0] or distance > most[1]:
            found[name] = f"{mismatch:.1e} of the spikes and {distance:.1e} of the gradient differ from {ours}'s"
    return found


def compare(
    functions: dict[str, Callable[[Tensor], Tensor]],
    steps: int,
    dtype: torch.dtype,
    mib: int,
    rounds: int,
    device: torch.device,
    layer: str,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """name -> [forward, forward + backward] in milliseconds, with the bound; and ``disagreements``."""
    elements = mib * 2**20 // dtype.itemsize
    batch = elements // (steps * 64 * 32 * 32)
    generator = torch.Generator(device).manual_seed(0)
    shape = (steps, batch, 64, 32, 32)
    x = (torch.randn(shape, generator=generator, device=device) * 1.5 + 0.5).to(dtype)
    grad = torch.randn(shape, generator=generator, device=device).to(dtype)
    different = disagreements(functions, x, grad, layer)

    out, grad_out = torch.empty_like(x), torch.empty_like(x)
    leaf = x.clone().requires_grad_()
    forward: dict[str, Action] = {BOUND: lambda: out.copy_(x)}
    both: dict[str, Action] = {BOUND: lambda: (out.copy_(x), torch.mul(x, grad, out=grad_out))}
    for name, function in functions.items():
        forward[name] = lambda function=function: _forward(function, x)
        both[name] = lambda function=function: _forward_backward(function, leaf, grad)
    times = [measure(actions, rounds, device) for actions in (forward, both)]
    return {name: [t[name] for t in times] for name in forward}, different


def _forward(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        function(x)


def _forward_backward(function: Callable[[Tensor], Tensor], leaf: Tensor, grad: Tensor) -> None:
    leaf.grad = None
    spikes = function(leaf)
    spikes.backward(_as(grad, spikes))


def _as(grad: Tensor, spikes: Tensor) -> Tensor:
    """As many values of ``grad`` as there are spikes."""
    return grad.flatten()[: spikes.numel()].view_as(spikes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2; on a GPU 1")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: fp32; on a GPU all")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--mib", type=int, help="size of the input; default: 16; on a GPU 512")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = usable(arguments.device)
    gpu = device.type == "cuda"
    mib = arguments.mib or (512 if gpu else 16)

    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for threads in arguments.threads or ([1] if gpu else [1, 2]):
        torch.set_num_threads(threads)
        for name in arguments.dtypes or (list(DTYPES) if gpu else ["fp32"]):
            for steps in arguments.steps:
                torch.compiler.reset()
                for layer, functions in (
                    ("LIF", contenders(steps, device)),
                    ("BN + LIF", norm_contenders(steps, device)),
                    ("BN + LIF + pool", pool_contenders(steps, device)),
                ):
                    times, different = compare(functions, steps, DTYPES[name], mib, arguments.rounds, device, layer)
                    wrong += [f"{layer}, {name}, T = {steps}, {who}: {how}" for who, how in different.items()]
                    peer, bound = times.get(PEERS[layer], [math.nan, math.nan]), times[BOUND]
                    for contender, (forward, both) in times.items():
                        row = {"threads": threads, "dtype": name, "T": steps, "layer": layer, "name": contender}
                        row |= {"fwd ms": forward, "fwd / bound": forward / bound[0]}
                        row |= {"fwd+bwd ms": both, "fwd+bwd / bound": both / bound[1], "peer / it": peer[1] / both}
                        rows.append(row)
                    if arguments.json:  # at once: what is measured survives what fails later
                        about = {"device": machine(device), "torch": torch.__version__, "mib": mib}
                        write_json(arguments.json, about | {"rows": for_json(rows), "disagreements": wrong})
    print_table(rows)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

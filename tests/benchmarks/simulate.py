"""Simulating SNN-SqueezeNet-P side by side: the fixed engine, the float model in PyTorch, and Intel's Lava.

    python tests/benchmarks/simulate.py --data DIR [--threads 1 2] [--images 32] [--lava stock fast] [--json FILE]

Full width, 32x32, T = 4, on test images of CIFAR-10 (DIR holds its public archive). The network is not trained: its
BatchNorm statistics come from a few forward passes on real images, so that its neurons fire at the rates printed. One
process, the contenders in turn within every round, medians over the rounds; the float model in either memory layout.

Lava streams its images. What one costs there is the time that more images take longer, divided by their number: neither
its start nor the filling of its pipeline counts. Before the clock starts, Lava's record must equal the fixed engine's.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from lif import measure, print_table
from torch import Tensor, nn

from spikeport.core import ModelSpec, Twin
from spikeport.core.data import load_dataset
from spikeport.core.files import write_json
from spikeport.export import read_nir, to_nir
from spikeport.targets import differences
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.lava import CONVOLUTIONS, simulate_lava
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord

STEPS = 4
#: Images that BatchNorm's statistics come from, and images the export is verified on.
CALIBRATION, VERIFIED = 128, 2
#: convolution model -> images of the shorter and of the longer stream
LAVA_IMAGES = {"fast": (2, 10), "stock": (1, 3)}
FIXED, FLOAT, FLOAT_LAST = "fixed engine", "float PyTorch", "float PyTorch, channels-last"


def network(images: Tensor) -> nn.Module:
    """SNN-SqueezeNet-P with the BatchNorm statistics of ``images``."""
    model = ModelSpec(twin=Twin("snn", time_steps=STEPS)).build(seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all passes
    with torch.no_grad():
        for batch in images.split(32):
            model(batch)
    return model.eval()


def program_of(model: nn.Module, images: Tensor) -> LoihiProgram:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.nir"
        to_nir(model, file, images[:VERIFIED].numpy())
        return compile(read_nir(file), images.numpy())


def firing_rate(record: SpikeRecord, program: LoihiProgram) -> float:
    """Spikes per neuron and step over all spiking populations."""
    neurons = sum(p.neurons for p in program.populations if p.spiking)
    return sum(int(s.sum()) for s in record.spikes.values()) / (neurons * record.samples * record.time_steps)


def lava_seconds(program: LoihiProgram, x: np.ndarray, convolution: str, rounds: int) -> float:
    """Seconds that one more image takes in a stream."""
    few, many = LAVA_IMAGES[convolution]
    record = simulate_lava(program, x[:few], convolution=convolution)
    if found := differences(simulate_fixed(program, x[:few]), record):
        sys.exit(f"Lava and the fixed engine disagree: {found[0]}")
    costs = []
    for _ in range(rounds):
        times = []
        for count in (few, many):
            start = time.perf_counter()
            simulate_lava(program, x[:count], convolution=convolution)
            times.append(time.perf_counter() - start)
        costs.append((times[1] - times[0]) / (many - few))
    return statistics.median(costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--lava", nargs="*", choices=CONVOLUTIONS, default=list(CONVOLUTIONS))
    parser.add_argument("--lava-rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    data = load_dataset("cifar10", arguments.data)
    images = data.normalise(data.test_images[: max(arguments.images, CALIBRATION)])
    model = network(images[:CALIBRATION])
    program = program_of(model, images)
    batch, last = images[: arguments.images], torch.channels_last
    x = batch.numpy()
    rate = firing_rate(simulate_fixed(program, x), program)
    other = network(images[:CALIBRATION]).to(memory_format=last)
    lava = {c: lava_seconds(program, x, c, arguments.lava_rounds) for c in arguments.lava}

    def forward(net: nn.Module, inputs: Tensor) -> None:
        with torch.no_grad():
            net(inputs)

    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        actions = {
            FIXED: lambda: simulate_fixed(program, x),
            FLOAT: lambda: forward(model, batch),
            FLOAT_LAST: lambda: forward(other, batch.contiguous(memory_format=last)),
        }
        times = {n: ms / len(x) for n, ms in measure(actions, arguments.rounds, torch.device("cpu")).items()}
        times |= {f"Lava, {convolution} convolutions": 1e3 * seconds for convolution, seconds in lava.items()}
        for name, ms in times.items():
            rows.append({"threads": threads, "simulator": name, "ms per image": ms, "it / fixed": ms / times[FIXED]})
    print(f"SNN-SqueezeNet-P, T = {STEPS}, {len(x)} images, {rate:.3f} spikes per neuron and step")
    print_table(rows)
    if arguments.json:
        write_json(arguments.json, {"torch": torch.__version__, "rate": rate, "images": len(x), "rows": rows})


if __name__ == "__main__":
    main()

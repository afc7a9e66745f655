"""Counting operations beside the plain forward pass of the same network on the same images.

    python tests/benchmarks/counting.py [--threads 2] [--rounds 15] [--json FILE]

SNN-SqueezeNet-P (T = 4) on the 64 CIFAR-10 images of examples/pretrained, in counting's own batches; both take turns,
and freed memory is kept, as in the command line.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from spikeport.core.files import write_json
from spikeport.core.memory import keep_freed_memory
from spikeport.core.runs import load_run
from spikeport.profiling import count_operations
from spikeport.profiling.counting import batch_size

RUN = Path(__file__).parents[2] / "examples" / "pretrained" / "squeezenet-p-cifar10" / "snn"


def milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    run = load_run(RUN)
    model, x = run.model().eval(), torch.from_numpy(run.samples(64)[0])

    def forward() -> None:
        with torch.no_grad():
            for batch in x.split(batch_size(x)):
                model(batch)

    rounds = [
        (milliseconds(forward), milliseconds(lambda: count_operations(model, x))) for _ in range(arguments.rounds + 1)
    ][1:]
    plain, counted = (median(column) for column in zip(*rounds, strict=True))
    print(f"{arguments.threads} threads, {len(x)} images in batches of {batch_size(x)}, medians of {arguments.rounds}")
    print(f"forward {plain:.0f} ms   counted {counted:.0f} ms   {counted / plain:.2f}x")
    if arguments.json:
        write_json(arguments.json, {"torch": torch.__version__, "forward_ms": plain, "counted_ms": counted})


if __name__ == "__main__":
    main()

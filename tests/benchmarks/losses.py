"""A training step of SNN-SqueezeNet-P with each loss, beside the step with cross-entropy alone.

    python tests/benchmarks/losses.py [--threads 2] [--batch 16] [--precision fp32] [--json FILE]

A step is forward, loss, backward and Adam. The losses take turns, so that whatever else the machine does meets all
of them alike; times are medians, ratios are to the plain step.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from spikeport.core import TrainConfig
from spikeport.core.evaluation import autocast
from spikeport.core.files import write_json
from spikeport.core.learner import LAYOUT
from spikeport.core.memory import keep_freed_memory
from spikeport.core.objective import Objective
from spikeport.core.optimisation import optimizer_for

LOSSES = {
    "cross-entropy": {},
    "gradient-aware": {"loss": "gradient-aware"},
    "grad-cam": {"loss": "grad-cam"},
    "temporal": {"loss": "temporal"},
    "firing rates": {"rate_weight": 1.0},
}


class Step:
    """One network, trained on one batch."""

    def __init__(self, settings: dict, batch: int, precision: str) -> None:
        self.config = TrainConfig(precision=precision, **settings)
        self.model = self.config.spec(10, (3, 32, 32)).build(0).to(memory_format=LAYOUT)
        self.objective = Objective(self.config, self.model)
        self.optimizer = optimizer_for(self.config, self.model)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(10, (batch,), generator=generator)
        self.x = (self.images.float() / 128 - 1).contiguous(memory_format=LAYOUT)

    def milliseconds(self, clock: Callable[[], float]) -> float:
        begin = clock()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), self.config.precision):
            logits = self.objective.forward(self.model, self.x)
            loss = self.objective(logits, self.labels, self.images, len(self.labels))
        loss.backward()
        self.optimizer.step()
        return 1000 * (clock() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    steps = {name: Step(settings, arguments.batch, arguments.precision) for name, settings in LOSSES.items()}
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    rounds = [{name: step.milliseconds(clock) for name, step in steps.items()} for _ in range(arguments.rounds + 1)][1:]
    times = {name: median(found[name] for found in rounds) for name in steps}
    ratios = {name: value / times["cross-entropy"] for name, value in times.items()}
    print(f"{arguments.threads} threads, batch {arguments.batch}, {arguments.precision}, medians of {arguments.rounds}")
    for name in steps:
        print(f"{name:16} {times[name]:8.1f} ms   {ratios[name]:.2f}x")
    if arguments.json:
        write_json(arguments.json, {"torch": torch.__version__, "milliseconds": times, "ratios": ratios})


if __name__ == "__main__":
    main()

"""What each process runs under torchrun in tests/core/test_distributed.py, and what one process does to compare."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import small_digits
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from spikeport.core import TrainConfig, distributed, train, training
from spikeport.core.objective import Objective

#: Images of the gradient's batch; the processes have 9 and 10 of them.
TOTAL = 19


def gradient(settings: dict[str, Any]) -> dict[str, Tensor]:
    """The gradient of one batch in float64, and the statistics BatchNorm took from it."""
    config, data = TrainConfig(**settings), small_digits.load()
    model = config.spec(10, data.image_shape).build(0).double()
    distributed.share_statistics(model)
    objective = Objective(config, model)
    part = distributed.share(TOTAL)
    images, labels = data.train_images[:TOTAL][part], data.train_labels[:TOTAL][part]
    forward = DistributedDataParallel(model) if distributed.processes() > 1 else model
    objective(forward(data.normalise(images).double()), labels, images, TOTAL).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return found | {name: b for name, b in model.named_buffers() if b.is_floating_point()}


def die_in_epoch_2() -> None:
    """Process 1 kills itself where it would judge its second epoch."""
    judge, calls = training.evaluate, []

    def judge_or_die(*arguments: Any) -> training.Evaluation:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(*arguments)

    if os.environ["RANK"] == "1":
        training.evaluate = judge_or_die


def main(work: dict[str, Any]) -> None:
    small_digits.register()
    torch.set_num_threads(1)
    if work.get("die"):
        die_in_epoch_2()
    for settings, out, resume in work["train"]:
        train(TrainConfig(**settings), out, resume=resume)
    for name, settings in work.get("gradients", {}).items():
        found = gradient(settings)
        torch.save(found, Path(work["out"]) / f"{name}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

"""Images per second of the input pipeline alone, beside those that SNN-SqueezeNet-P trains.

    python tests/benchmarks/input_pipeline.py [--threads 2] [--batch 32] [--data CIFAR10] [--json FILE]

The pipeline: gathering a batch out of 40,000 images in random order, crop, flip and cutout, prefetching, normalising
to float32. A training step: forward, backward and Adam, in fp32 and under bf16 autocast; the ratio is to the faster.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from spikeport.core import TrainConfig
from spikeport.core.data import ImageData, load_dataset
from spikeport.core.data.augment import AUGMENTATIONS
from spikeport.core.data.batches import batches, prefetched
from spikeport.core.evaluation import autocast
from spikeport.core.files import write_json
from spikeport.core.objective import Objective
from spikeport.core.optimisation import optimizer_for

IMAGES = 40_000


def noise() -> ImageData:
    """Where no archive is at hand: the pixels do not change the work."""
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (IMAGES,))
    return ImageData("noise", images, labels, images[:1], labels[:1], (0.5,) * 3, (0.25,) * 3, tuple("0123456789"))


def delivered(data: ImageData, size: int, names: tuple[str, ...], seconds: float) -> float:
    """Images per second of the pipeline."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.train_images), generator=generator)
    count, begin = 0, time.perf_counter()
    for batch in prefetched(batches(data, order, size, names, generator)):
        x = data.normalise(batch.images).contiguous(memory_format=torch.channels_last)
        count += len(x)
        if time.perf_counter() - begin > seconds:
            break
    return count / (time.perf_counter() - begin)


class Training:
    """SNN-SqueezeNet-P in one precision, batch after batch."""

    def __init__(self, data: ImageData, size: int, precision: str) -> None:
        self.config = TrainConfig(precision=precision)
        self.model = self.config.spec(10, (3, 32, 32)).build(0).to(memory_format=torch.channels_last)
        self.optimizer = optimizer_for(self.config, self.model)
        self.objective = Objective(self.config, self.model)
        self.images, self.labels = data.train_images[:size], data.train_labels[:size]
        self.x = data.normalise(self.images).contiguous(memory_format=torch.channels_last)

    def images_per_second(self) -> float:
        begin = time.perf_counter()
        with autocast(torch.device("cpu"), self.config.precision):
            loss = self.objective(self.model(self.x).float(), self.labels, self.images, len(self.labels))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return len(self.labels) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10; noise without it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_dataset("cifar10", arguments.data) if arguments.data else noise()
    trainings = {precision: Training(data, arguments.batch, precision) for precision in ("fp32", "bf16")}
    measured: dict[str, list[float]] = {"plain": [], "augmented": [], **{p: [] for p in trainings}}
    for round_ in range(arguments.rounds + 1):
        found = {"plain": delivered(data, arguments.batch, (), 0.3)}
        found["augmented"] = delivered(data, arguments.batch, AUGMENTATIONS, 0.3)
        found |= {precision: training.images_per_second() for precision, training in trainings.items()}
        if round_:  # the first warms up
            for name, value in found.items():
                measured[name].append(value)
    result = {name: median(values) for name, values in measured.items()}
    result["ratio"] = result["augmented"] / max(result["fp32"], result["bf16"])
    print(f"{arguments.threads} threads, batch {arguments.batch}, medians of {arguments.rounds}, images per second")
    for name, text in (
        ("plain", "pipeline without augmentation"),
        ("augmented", "pipeline with crop, flip, cutout"),
        ("fp32", "SNN-SqueezeNet-P trains, fp32"),
        ("bf16", "SNN-SqueezeNet-P trains, bf16"),
    ):
        print(f"{text:34} {result[name]:12,.0f}")
    print(f"pipeline with augmentation / training: {result['ratio']:.1f}")
    if arguments.json:
        write_json(arguments.json, {"threads": arguments.threads, "torch": torch.__version__, **result})


if __name__ == "__main__":
    main()

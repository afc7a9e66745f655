"""Packs a trained run so that it travels without its data set: weights, description, log and a few test images.

python examples/pretrained/pack.py RUN OUT [--samples 64]
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from spikeport.core import TrainConfig, load_run
from spikeport.core.data import load_dataset
from spikeport.core.records import METRICS_FILE
from spikeport.core.runs import CONFIG_FILE, SAMPLES_FILE, WEIGHTS_FILE, save_model


def pack(source: Path, out: Path, samples: int) -> None:
    run = load_run(source)
    data = load_dataset(run.data.name, run.data.folder)
    out.mkdir(parents=True)
    results = run.results | {"accuracy": run.results["test_accuracy"]}
    save_model(out, run.spec, replace(run.data, folder=None), results)
    for name in (WEIGHTS_FILE, METRICS_FILE):
        shutil.copy(source / name, out / name)
    # Folders of this machine say nothing elsewhere.
    settings = TrainConfig.read(source / CONFIG_FILE) | {"data": None, "start": None, "teacher": None}
    TrainConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}).save(
        out / CONFIG_FILE
    )
    images, labels = data.test_images[:samples].numpy(), data.test_labels[:samples].numpy()
    np.savez_compressed(out / SAMPLES_FILE, images=images, labels=labels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    arguments = parser.parse_args()
    pack(arguments.run, arguments.out, arguments.samples)

"""A few of the digits under a name of their own, so that a test trains in a blink."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from spikeport.core.data import DATASETS, Entry, ImageData
from spikeport.core.data.digits import load_digits

NAME = "small-digits"
#: 96 of them are trained on, 24 are the validation part.
TRAIN, TEST = 120, 40


@cache
def load(folder: Path | None = None) -> ImageData:
    data = load_digits()
    return replace(
        data,
        name=NAME,
        train_images=data.train_images[:TRAIN],
        train_labels=data.train_labels[:TRAIN],
        test_images=data.test_images[:TEST],
        test_labels=data.test_labels[:TEST],
    )


def register() -> None:
    DATASETS[NAME] = Entry(load, f"the first {TRAIN} and {TEST} digits")

"""A CNN and its spiking twin side by side: where they err, class by class, and on which images (Table 4.4)."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from spikeport.core.data import ImageData, load_dataset
from spikeport.core.errors import SpikeportError
from spikeport.core.evaluation import evaluate
from spikeport.core.figures import literal, save_figure
from spikeport.core.files import write_csv, write_text
from spikeport.core.runs import Run
from spikeport.profiling.studies.table import markdown

#: Written last.
PICTURE = "predictions.png"
#: Images of each kind in the picture: both right, only the CNN right, only the SNN right, both wrong.
SHOWN = (2, 3, 3, 2)


@dataclass(frozen=True)
class ClassErrors:
    """Errors of both twins on the test images of one class.

    Attributes:
        both: images on which both err.
        cnn_takes_for, snn_takes_for: the wrong class each names most often ("" where it never errs).
    """

    name: str
    images: int
    cnn: int
    snn: int
    both: int
    cnn_takes_for: str
    snn_takes_for: str


def side_by_side(cnn: Run, snn: Run, folder: Path, data_folder: str | None = None) -> list[ClassErrors]:
    """Judges both twins on the test set; writes FOLDER/errors.md, errors.csv and predictions.png.

    Args:
        data_folder: where the data set lies; where None, where the CNN's training found it.

    Raises:
        SpikeportError: the runs are not a CNN and an SNN of one data set.
    """
    if (cnn.kind, snn.kind) != ("cnn", "snn"):
        raise SpikeportError(
            f"{cnn.path} is a {cnn.kind} and {snn.path} a {snn.kind}; give a CNN and an SNN, in this order"
        )
    if cnn.data.name != snn.data.name:
        raise SpikeportError(f"{cnn.path} saw {cnn.data.name}, {snn.path} {snn.data.name}; give twins of one data set")
    data = load_dataset(cnn.data.name, data_folder or cnn.data.folder)
    cnn_says, snn_says = (
        evaluate(run.model(), data, data.test_images, data.test_labels).predictions for run in (cnn, snn)
    )
    rows = class_errors(data.test_labels, cnn_says, snn_says, data.class_names)
    heading = ["class", "images", "CNN errs", "SNN errs", "both", "CNN takes it for", "SNN takes it for"]
    body = [[str(cell) for cell in vars(row).values()] for row in rows]
    write_text(folder / "errors.md", markdown(heading, body))
    write_csv(folder / "errors.csv", [heading, *body])
    save_figure(_picture(data, cnn_says, snn_says), folder / PICTURE, bbox_inches="tight")
    return rows


def class_errors(labels: Tensor, cnn: Tensor, snn: Tensor, names: tuple[str, ...]) -> list[ClassErrors]:
    """One entry per class; labels and predictions are int64 [N]."""
    rows = []
    for number, name in enumerate(names):
        of_class = labels == number
        cnn_errs, snn_errs = of_class & (cnn != labels), of_class & (snn != labels)
        counts = (int(mask.sum()) for mask in (of_class, cnn_errs, snn_errs, cnn_errs & snn_errs))
        images, by_cnn, by_snn, both = counts
        taken_for = _most(cnn[cnn_errs], names), _most(snn[snn_errs], names)
        rows.append(ClassErrors(name, images, by_cnn, by_snn, both, *taken_for))
    return rows


def _most(classes: Tensor, names: tuple[str, ...]) -> str:
    counts = Counter(classes.tolist())
    return names[min(counts, key=lambda c: (-counts[c], c))] if counts else ""


def _picture(data: ImageData, cnn: Tensor, snn: Tensor) -> Figure:
    right = [predicted == data.test_labels for predicted in (cnn, snn)]
    groups = (right[0] & right[1], right[0] & ~right[1], ~right[0] & right[1], ~right[0] & ~right[1])
    chosen = torch.cat([group.nonzero().flatten()[:count] for group, count in zip(groups, SHOWN, strict=True)]).tolist()
    figure = Figure(figsize=(1.5 * len(chosen), 2.4))
    for place, k in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        place.imshow(data.test_images[k].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
        place.set_axis_off()
        truth = int(data.test_labels[k])
        lines = [("truth", truth), ("CNN", int(cnn[k])), ("SNN", int(snn[k]))]
        for line, (who, named) in enumerate(lines):
            colour = "black" if named == truth else "#D40000"
            text = f"{who}: {data.class_names[named]}"
            place.text(
                0.5,
                -0.08 - 0.13 * line,
                literal(text),
                color=colour,
                fontsize=7,
                ha="center",
                va="top",
                transform=place.transAxes,
            )
    return figure

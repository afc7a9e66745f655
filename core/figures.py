"""Pictures of a training, drawn from the tables of its run folder."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeport.core.errors import SpikeportError
from spikeport.core.files import replacing
from spikeport.core.rates import NETWORK
from spikeport.core.records import LAYERS_FILE, METRICS_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = "figures"
#: Colour-blind safe: M. Okabe, K. Ito, Color Universal Design, 2008.
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BLACK = PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"),
)
GREY = "#999999"
TRAIN, VALIDATION, GOAL = BLUE, ORANGE, BLACK

Rows = list[dict[str, str]]


def draw_figures(run: Path, rate_goal: float = 0.3) -> list[Path]:
    """Writes figures/{curves,gradients,rates}.svg into a run folder; returns what was written (no rates for a CNN).

    curves: loss and accuracy over epochs, training against validation (the paper's Figure 4.2).
    gradients: gradient norm of every layer's weight, first, middle and last epoch (its Figure 4.3).
    rates: firing rate of every LIF layer in the last epoch, against ``rate_goal``.

    Raises:
        SpikeportError: tables that are missing or not those of a training.
    """
    try:
        metrics, layers = _rows(run / METRICS_FILE), _rows(run / LAYERS_FILE)
        figures = {"curves": _curves(metrics), "gradients": _gradients(layers), "rates": _rates(layers, rate_goal)}
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise SpikeportError(f"{run}: no tables of a training to draw ({error}); train again") from None
    drawn = {run / FIGURES / f"{name}.svg": figure for name, figure in figures.items() if figure is not None}
    return [save_figure(figure, file) for file, figure in drawn.items()]


def literal(name: str) -> str:
    """A name as matplotlib has to be given it: dollars would begin a formula."""
    return name.replace("$", r"\$")


def _rows(file: Path) -> Rows:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def framed(axes: "Axes") -> "Axes":
    """With a frame on the left and below only."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def name_places(axes: "Axes", names: Iterable[str]) -> None:
    """Writes a name, slanted, below each place 0, 1, ... of the horizontal axis."""
    shown = list(map(literal, names))
    axes.set_xticks(range(len(shown)), shown, rotation=60, ha="right", fontsize=7)


def _figure(columns: int = 1) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    return figure, [framed(axes) for axes in figure.subplots(1, columns, squeeze=False)[0]]


def _curves(metrics: Rows) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(2)
    epochs = [int(row["epoch"]) for row in metrics]
    for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for part, colour in (("train", TRAIN), ("validation", VALIDATION)):
            values = [float(row[f"{part}_{quantity}"]) for row in metrics]
            axis.plot(epochs, values, color=colour, marker="." if len(epochs) < 30 else "", label=part)
        axis.set_xlabel("epoch")
        axis.set_ylabel(quantity)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes[0].legend(frameon=False)
    return figure


def _gradients(layers: Rows) -> "Figure":
    shown = [row for row in layers if row["gradient_norm"] and row["layer"] != NETWORK]
    epochs = sorted({int(float(row["epoch"])) for row in shown})
    figure, (axis,) = _figure()
    for place, epoch in enumerate(sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]})):
        rows = [row for row in shown if int(float(row["epoch"])) == epoch]
        norms = [float(row["gradient_norm"]) for row in rows]
        axis.plot(range(len(rows)), norms, marker=".", color=(TRAIN, VALIDATION, GREEN)[place], label=f"epoch {epoch}")
        name_places(axis, [row["layer"] for row in rows])
    if any(float(row["gradient_norm"]) > 0 for row in shown):
        axis.set_yscale("log")
    axis.set_ylabel("gradient norm of the weight\n(mean over the epoch's steps)", fontsize=8)
    axis.legend(frameon=False)
    return figure


def _rates(layers: Rows, goal: float) -> "Figure | None":
    spiking = [row for row in layers if row["firing_rate"]]
    if not spiking:
        return None
    last = [row for row in spiking if row["epoch"] == spiking[-1]["epoch"]]
    rows = [row for row in last if row["layer"] != NETWORK]
    mean = next(float(row["firing_rate"]) for row in last if row["layer"] == NETWORK)
    figure, (axis,) = _figure()
    axis.bar(range(len(rows)), [float(row["firing_rate"]) for row in rows], color=TRAIN)
    axis.axhline(goal, color=GOAL, linestyle="--", linewidth=1, label=f"goal {goal:g}")
    axis.axhline(mean, color=VALIDATION, linewidth=1, label=f"mean over all outputs {mean:.3f}")
    name_places(axis, [row["layer"] for row in rows])
    axis.set_ylabel("spikes per neuron and step\n(validation images, last epoch)", fontsize=8)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def save_figure(figure: "Figure", file: Path, **options: Any) -> Path:
    """Writes a picture of the file's kind (.svg, .png), the same figure as the same bytes; ``options`` of savefig."""
    import matplotlib

    metadata = {"Date": None} if file.suffix == ".svg" else None
    with replacing(file) as temporary, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spikeport"}):
        figure.savefig(temporary, metadata=metadata, **options)
    return file

"""The report's pictures, as inline SVG with a text that says what they show."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikeport.core.figures import BLUE, GREEN, GREY, ORANGE, PALETTE, framed, literal, name_places
from spikeport.profiling.breakeven import BreakEven
from spikeport.profiling.counts import ModelCounts
from spikeport.profiling.energy import RATE_GOAL
from spikeport.profiling.energy_table import Entry
from spikeport.profiling.rows import TRAINING, Row, witnesses
from spikeport.profiling.statistics import EDGES, LayerStatistics

#: The same witness has the same colour everywhere.
COLOURS = {"cnn": GREY, TRAINING: BLUE, "fixed": ORANGE, "lava": GREEN}
LABELS = {"cnn": "CNN", TRAINING: "SNN, training", "fixed": "SNN, fixed engine", "lava": "SNN, Lava"}
COLUMNS = 400


@dataclass(frozen=True)
class Picture:
    """An SVG, what it shows (its caption), and its content in words (its alternative text)."""

    svg: str
    caption: str
    text: str


def _picture(figure: Figure, caption: str, text: str) -> Picture:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    return Picture(svg[svg.index("<svg") :], caption, f"{caption} {text}")


def _framed(axes: Axes, ylabel: str) -> Axes:
    axes.set_ylabel(ylabel)
    return framed(axes)


def _bars(rows: list[Row], values: dict[str, list[float]], ylabel: str, log: bool = False) -> Figure:
    figure = Figure(figsize=(10, 3.4))
    axes = _framed(figure.subplots(), ylabel)
    places = np.arange(len(rows))
    width = 0.8 / max(len(values), 1)
    for k, (witness, heights) in enumerate(values.items()):
        axes.bar(
            places + (k - (len(values) - 1) / 2) * width, heights, width, label=LABELS[witness], color=COLOURS[witness]
        )
    name_places(axes, _names(rows))
    if log:
        axes.set_yscale("log")
    return figure


def _legend(figure: Figure) -> Figure:
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def _range(names: Sequence[str], values: Sequence[float], unit: str) -> str:
    """Where the smallest and the largest value lie."""
    if not len(values):
        return ""
    low, high = int(np.argmin(values)), int(np.argmax(values))
    return f"Lowest: {names[low]}, {values[low]:.3g} {unit}; highest: {names[high]}, {values[high]:.3g} {unit}."


def _names(rows: list[Row]) -> list[str]:
    return [row.layer or row.kind for row in rows]


def energy_plot(rows: list[Row]) -> Picture:
    """Energy per layer, a bar per witness and for the CNN."""
    values = {w: [row.energy_nj.get(w, 0.0) for row in rows] for w in witnesses(rows)}
    first = next(iter(values))
    if any(row.cnn_energy_nj is not None for row in rows):
        values = {"cnn": [row.cnn_energy_nj or 0.0 for row in rows]} | values
    return _picture(
        _legend(_bars(rows, values, "energy per image (nJ)", log=True)),
        "Energy per layer and image under horowitz, the same constants for every witness (logarithmic).",
        f"{LABELS[first]}: {_range(_names(rows), values[first], 'nJ')}",
    )


def cause_plot(energies: dict[str, Entry]) -> Picture | None:
    """Energy per layer by cause, for the models with more causes than operations; None where there is none."""
    shown = {name: next(iter(_snn_layers(entry).values())) for name, entry in energies.items() if _snn_layers(entry)}
    shown = {name: layers for name, layers in shown.items() if len({c for v in layers.values() for c in v}) > 2}
    if not shown:
        return None
    figure = Figure(figsize=(10, 3.4 * len(shown)))
    texts = []
    for k, (name, layers) in enumerate(shown.items()):
        axes = _framed(figure.add_subplot(len(shown), 1, k + 1), f"{name} (nJ)")
        layers = {layer: causes for layer, causes in layers.items() if sum(causes.values())}
        causes = list(dict.fromkeys(cause for found in layers.values() for cause in found))
        below = np.zeros(len(layers))
        for cause, colour in zip(causes, PALETTE, strict=False):
            heights = np.array([found.get(cause, 0.0) for found in layers.values()])
            axes.bar(np.arange(len(layers)), heights, bottom=below, label=cause, color=colour)
            below += heights
        name_places(axes, layers)
        axes.legend(fontsize=7, frameon=False)
        sums = {cause: sum(found.get(cause, 0.0) for found in layers.values()) for cause in causes}
        parts = ", ".join(f"{cause} {100 * value / sum(sums.values()):.0f} %" for cause, value in sums.items())
        texts.append(f"{name}: {parts}.")
    figure.tight_layout()
    return _picture(figure, "Energy of the SNN per layer and image by cause.", " ".join(texts))


def _snn_layers(entry: Entry) -> dict[str, dict[str, dict[str, float]]]:
    return {witness: layers for witness, layers in entry.layers.items() if witness != "cnn"}


def break_even_plot(even: list[BreakEven], training: ModelCounts | None) -> Picture | None:
    """Break-even rate against the number of steps, a line per energy model, and where this network is."""
    if not even or training is None:
        return None
    figure = Figure(figsize=(10, 3.4))
    axes = _framed(figure.subplots(), "spikes per neuron and step")
    for found, colour in zip(even, PALETTE, strict=False):
        axes.plot(list(found.rates), list(found.rates.values()), marker=".", label=found.model, color=colour)
    axes.plot(training.time_steps, training.rate, "k*", markersize=12, label="this network")
    here = [found.rates[training.time_steps] for found in even]
    top = max(1.5 * training.rate, 0.1, *here)
    axes.set_ylim(0, min(top, 1.0))
    axes.set_xlabel("time steps T")
    wins = "; ".join(
        f"{e.model}: at {training.time_steps} steps below {e.rates[training.time_steps]:.3g}" for e in even
    )
    return _picture(
        _legend(figure),
        "Break-even: below its line the SNN takes less energy than the CNN under that model (above 1: always).",
        f"The network fires at {training.rate:.3g}. {wins}.",
    )


def rate_plot(rows: list[Row]) -> Picture:
    """Firing rate per layer, a bar per witness, against the paper's goal."""
    spiking = [row for row in rows if row.rate]
    values = {w: [row.rate.get(w, 0.0) for row in spiking] for w in witnesses(spiking)}
    figure = _bars(spiking, values, "spikes per neuron and step")
    figure.axes[0].axhline(RATE_GOAL, color="black", linestyle="--", linewidth=1, label=f"goal {RATE_GOAL}")
    first = next(iter(values), "")
    return _picture(
        _legend(figure),
        f"Firing rate per layer; dashed: the paper's goal, {RATE_GOAL}.",
        f"{LABELS[first]}: {_range(_names(spiking), values[first], '')}" if first else "",
    )


def histogram_plot(statistics: dict[str, LayerStatistics]) -> Picture | None:
    """Neurons by firing rate, a column per bin, over all layers."""
    if not statistics:
        return None
    counts = np.sum([layer.histogram for layer in statistics.values()], axis=0)
    figure = Figure(figsize=(10, 3))
    axes = _framed(figure.subplots(), "neurons")
    axes.bar(EDGES[:-1], counts, np.diff(EDGES), align="edge", color=COLOURS[TRAINING], edgecolor="white")
    axes.set_yscale("symlog")
    axes.set_xlabel("spikes per step, mean over the images")
    neurons, silent, saturated = (
        sum(getattr(layer, name) for layer in statistics.values()) for name in ("neurons", "silent", "saturated")
    )
    return _picture(
        figure,
        "Neurons by their firing rate, all LIF layers.",
        f"Of {neurons:,} neurons {silent:,} are silent and {saturated:,} saturated on these images.",
    )


def steps_plot(statistics: dict[str, LayerStatistics], class_names: Sequence[str]) -> Picture | None:
    """Firing rate over the time steps, a line per layer, and by class."""
    if not statistics:
        return None
    figure = Figure(figsize=(10, 3.4))
    first, second = figure.subplots(1, 2)
    left, right = _framed(first, "spikes per neuron"), _framed(second, "spikes per neuron and step")
    weights = np.array([layer.neurons for layer in statistics.values()])
    steps = np.array([layer.steps for layer in statistics.values()])
    mean = weights @ steps / weights.sum()
    places = np.arange(1, steps.shape[1] + 1)
    for rates in steps:
        left.plot(places, rates, color=GREY, linewidth=0.8)
    left.plot(places, mean, color=COLOURS[TRAINING], marker="o", label="all neurons")
    left.set_xticks(places)
    left.set_xlabel("time step (grey: each layer)")
    left.legend(fontsize=8, frameon=False)
    classes = sorted(next(iter(statistics.values())).classes)
    by_class = [
        float(weights @ np.array([layer.classes[c] for layer in statistics.values()]) / weights.sum()) for c in classes
    ]
    names = [class_names[c] if c < len(class_names) else str(c) for c in classes]
    right.bar(np.arange(len(classes)), by_class, color=COLOURS[TRAINING])
    name_places(right, names)
    figure.tight_layout()
    return _picture(
        figure,
        "Firing rate over the time steps (left) and by class (right).",
        "Over the steps: " + ", ".join(f"{rate:.3g}" for rate in mean) + ". By class: " + _range(names, by_class, ""),
    )


def difference_plot(rows: list[Row]) -> Picture | None:
    """Relative difference of synaptic operations to training, per layer; None where there is nothing to compare."""
    engines = [w for w in witnesses(rows) if w != TRAINING]
    shown = [row for row in rows if any(row.difference(e) is not None for e in engines)]
    if not shown:
        return None
    values = {e: [100 * (row.difference(e) or 0.0) for row in shown] for e in engines}
    figure = _bars(shown, values, "synaptic operations,\ndifference to training (%)")
    figure.axes[0].axhline(0, color="black", linewidth=0.8)
    return _picture(
        _legend(figure),
        "Synaptic operations of the target against those counted in training.",
        f"{LABELS[engines[0]]}: {_range(_names(shown), values[engines[0]], '%')}",
    )


def divergence_plot(rows: list[Row]) -> Picture | None:
    """How far the target's spike counts are from training's, per layer; None where there is nothing to compare."""
    shown = [row for row in rows if row.divergence]
    if not shown:
        return None
    engines = list(shown[0].divergence)
    values = {e: [100 * row.divergence.get(e, 0.0) for row in shown] for e in engines}
    return _picture(
        _legend(_bars(shown, values, "divergence of spikes (%)")),
        "Divergence by layer: absolute differences of the spike counts per image and step, over training's spikes.",
        f"{LABELS[engines[0]]}: {_range(_names(shown), values[engines[0]], '%')}",
    )


def raster_plot(rasters: dict[str, np.ndarray], time_steps: int, sample: int) -> Picture | None:
    """Spikes of sample number ``sample``: layer -> [T, neurons], a strip each; None where there are none."""
    if not rasters:
        return None
    figure = Figure(figsize=(10, 0.32 * len(rasters) + 0.8))
    axes = figure.subplots(len(rasters), 1, squeeze=False)[:, 0]
    for axis, (name, spikes) in zip(axes, rasters.items(), strict=True):
        # Neurons are averaged down so that the page stays small.
        edges = np.linspace(0, spikes.shape[1], min(COLUMNS, spikes.shape[1]) + 1).astype(int)
        density = np.add.reduceat(spikes.astype(float), edges[:-1], axis=1) / np.diff(edges)
        axis.imshow(density, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axis.set_yticks([])
        axis.set_xticks([])
        axis.set_ylabel(literal(name), rotation=0, ha="right", va="center", fontsize=7)
    axes[-1].set_xlabel(f"neurons (darker: more of them spike); {time_steps} steps from top to bottom in each strip")
    means = [float(spikes.mean()) for spikes in rasters.values()]
    return _picture(figure, f"Spikes of image {sample}, layer by layer.", "Rates: " + _range(list(rasters), means, ""))

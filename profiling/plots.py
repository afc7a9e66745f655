"""The report's pictures, as inline SVG."""

import io

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure

from spikeport.profiling.comparison import TRAINING, Row
from spikeport.profiling.energy import RATE_GOAL

#: Colour-blind safe (Okabe and Ito, 2008), the same witness in the same colour everywhere.
COLOURS = {"cnn": "#999999", TRAINING: "#0072B2", "fixed": "#E69F00", "lava": "#009E73"}
LABELS = {"cnn": "CNN", TRAINING: "SNN, training", "fixed": "SNN, fixed engine", "lava": "SNN, Lava"}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spikeport"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _bars(rows: list[Row], values: dict[str, list[float]], ylabel: str, log: bool = False) -> Figure:
    figure = Figure(figsize=(10, 3.4))
    axes = figure.subplots()
    places = np.arange(len(rows))
    width = 0.8 / max(len(values), 1)
    for k, (witness, heights) in enumerate(values.items()):
        axes.bar(
            places + (k - (len(values) - 1) / 2) * width, heights, width, label=LABELS[witness], color=COLOURS[witness]
        )
    axes.set_xticks(places, [row.layer or row.kind for row in rows], rotation=60, ha="right", fontsize=7)
    axes.set_ylabel(ylabel)
    if log:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def energy_plot(rows: list[Row]) -> str:
    values = {w: [row.energy_nj.get(w, 0.0) for row in rows] for w in _witnesses(rows)}
    if any(row.cnn_energy_nj is not None for row in rows):
        values = {"cnn": [row.cnn_energy_nj or 0.0 for row in rows]} | values
    figure = _bars(rows, values, "energy per image (nJ)", log=True)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def rate_plot(rows: list[Row]) -> str:
    spiking = [row for row in rows if row.rate]
    values = {w: [row.rate.get(w, 0.0) for row in spiking] for w in _witnesses(spiking)}
    figure = _bars(spiking, values, "spikes per neuron and step")
    figure.axes[0].axhline(RATE_GOAL, color="black", linestyle="--", linewidth=1, label=f"goal {RATE_GOAL}")
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def difference_plot(rows: list[Row]) -> str | None:
    """Relative difference of synaptic operations to training, per layer; None where there is nothing to compare."""
    engines = [w for w in _witnesses(rows) if w != TRAINING]
    shown = [row for row in rows if any(row.difference(e) is not None for e in engines)]
    if not shown:
        return None
    values = {e: [100 * (row.difference(e) or 0.0) for row in shown] for e in engines}
    figure = _bars(shown, values, "synaptic operations,\ndifference to training (%)")
    figure.axes[0].axhline(0, color="black", linewidth=0.8)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def raster_plot(rasters: dict[str, np.ndarray], time_steps: int) -> str | None:
    """Spikes of one sample: step against neuron, a strip per layer; None where no rasters were kept."""
    strips = [(name, maps[0].reshape(time_steps, -1)) for name, maps in rasters.items() if len(maps)]
    if not strips:
        return None
    figure = Figure(figsize=(10, 0.32 * len(strips) + 0.8))
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for axis, (name, spikes) in zip(axes, strips, strict=True):
        # Neurons are averaged down to 400 columns so that the page stays small.
        edges = np.linspace(0, spikes.shape[1], min(400, spikes.shape[1]) + 1).astype(int)
        density = np.add.reduceat(spikes, edges[:-1], axis=1) / np.diff(edges)
        axis.imshow(density, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axis.set_yticks([])
        axis.set_xticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    axes[-1].set_xlabel(f"neurons (darker: more of them spike); {time_steps} steps from top to bottom in each strip")
    return _svg(figure)


def _witnesses(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(w for row in rows for w in row.acs))

"""Accuracy against energy (the paper's Figure 1.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from spikeport.core.figures import BLUE, GREY, RED, framed, literal, save_figure
from spikeport.profiling.studies.table import Row

COLOURS = {"cnn": GREY, "snn": BLUE}


def pareto_plot(rows: Sequence[Row], path: Path) -> None:
    """Test accuracy against the energy of a whole inference, nJ; the frontier joins what nothing beats in both."""
    shown = [row for row in rows if row.finished]
    if not shown:
        return
    points = {row.name: (mean(row.values["energy_nj"]), mean(row.values["test_accuracy"])) for row in shown}
    best = frontier(points)
    figure = Figure(figsize=(7, 4.5))
    axes = framed(figure.subplots())
    axes.plot(*zip(*(points[name] for name in best), strict=True), color=RED, linewidth=1, label="frontier")
    for kind, marker in (("cnn", "s"), ("snn", "o")):
        of_kind = [row for row in shown if row.config.kind == kind]
        if of_kind:
            axes.errorbar(
                [points[row.name][0] for row in of_kind],
                [points[row.name][1] for row in of_kind],
                yerr=[row.deviation("test_accuracy") or 0.0 for row in of_kind],
                fmt=marker,
                color=COLOURS[kind],
                capsize=2,
                linewidth=0.8,
                label=kind.upper(),
            )
    for name, point in points.items():
        axes.annotate(literal(name), point, textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("energy per image, all time steps (nJ: 0.9 pJ per AC, 4.6 pJ per MAC)")
    axes.set_ylabel("test accuracy")
    axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path, bbox_inches="tight")


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the (energy, accuracy) points that no other equals or beats in both, by rising energy."""
    best: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best

"""What a run writes down after every epoch: two tables, and events for TensorBoard where it is installed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikeport.core.files import write_csv

METRICS_FILE = "metrics.csv"
LAYERS_FILE = "layers.csv"
EVENTS = "tensorboard"
METRICS = ("epoch", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
#: Gradient norm: of a layer's weight, mean over the steps of the epoch. Firing rate: spikes per neuron and step on
#: the validation images. The layer "network": the whole gradient, and the mean over all LIF outputs.
LAYERS = ("epoch", "layer", "gradient_norm", "firing_rate")

Row = dict[str, float]


@dataclass
class Told:
    """The rows of both tables so far."""

    metrics: list[Row] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: Row, gradients: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self.metrics.append(row)
        for name in {**gradients, **rates}:
            values = (row["epoch"], name, gradients.get(name), rates.get(name))
            self.layers.append(dict(zip(LAYERS, values, strict=True)))

    def best(self) -> int:
        """The epoch (from 1) with the best validation accuracy, the earliest of equals."""
        accuracies = [row["validation_accuracy"] for row in self.metrics]
        return 1 + accuracies.index(max(accuracies))

    def save(self, out: Path) -> None:
        """Writes both tables anew, and the last epoch as events for TensorBoard where that is installed."""
        for file, columns, rows in ((METRICS_FILE, METRICS, self.metrics), (LAYERS_FILE, LAYERS, self.layers)):
            write_csv(out / file, [columns, *([row[name] for name in columns] for row in rows)])
        self._save_events(out / EVENTS)

    def _save_events(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        row = self.metrics[-1]
        values = {name: row[name] for name in METRICS if name != "epoch"}
        for layer in self.layers:
            if layer["epoch"] == row["epoch"]:
                found = {name: layer[name] for name in LAYERS[2:] if layer[name] is not None}
                values |= {f"{name}/{layer['layer']}": value for name, value in found.items()}
        with SummaryWriter(folder) as board:
            for name, value in values.items():
                board.add_scalar(name, value, int(row["epoch"]))

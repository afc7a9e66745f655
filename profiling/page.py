"""The report as files: one HTML page, and a table of layers as CSV."""

from typing import Any

import jinja2

from spikeport.profiling import plots
from spikeport.profiling.rows import MARK_ABOVE, TRAINING, Row, witnesses


def render(content: dict[str, Any], rows: list[Row], pictures: list[plots.Picture]) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spikeport.profiling", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = number
    environment.filters["percent"] = lambda v: "–" if v is None else f"{100 * v:.1f} %"
    counted = witnesses(rows)
    shown = content | {"rows": rows, "pictures": pictures, "witnesses": counted, "labels": plots.LABELS}
    # Engines are held against training alone.
    shown["engine_names"] = [w for w in counted if w != TRAINING] if TRAINING in counted else []
    shown["energy_columns"], shown["energy_layers"] = _energy_by_layer(content["energy"])
    return environment.get_template("report.html").render(shown, mark=MARK_ABOVE)


def _energy_by_layer(energy: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[float | None]]]:
    """Model -> the witnesses it shares out to layers; layer -> its nJ in all these columns, where any is above 0."""
    columns = {name: list(entry["layers"]) for name, entry in energy.items() if entry["layers"]}
    found = [energy[name]["layers"][witness] for name, shown in columns.items() for witness in shown]
    # The most layers first: an SNN's, whose order has its CNN twin's in it.
    names = dict.fromkeys(name for layers in sorted(found, key=len, reverse=True) for name in layers)
    lines = {name: [sum(layers[name].values()) if name in layers else None for layers in found] for name in names}
    return columns, {name: values for name, values in lines.items() if any(values)}


def layers_table(rows: list[Row]) -> list[list[Any]]:
    """The comparison as lines of a table, the heading first."""
    shown = witnesses(rows)
    per = ("spikes", "rate", "acs", "graded_events", "energy_nj", "divergence")
    plain = ("layer", "kind", "neurons_layer", "neurons", "macs", "chip_macs", "cnn_macs", "cnn_energy_nj")
    lines: list[list[Any]] = [[*plain, *(f"{quantity}_{w}" for quantity in per for w in shown), "note"]]
    for row in rows:
        cells = [getattr(row, quantity).get(w) for quantity in per for w in shown]
        lines.append([*(getattr(row, name) for name in plain), *cells, row.note])
    return lines


def number(value: float | None) -> str:
    """Four significant digits, thousands grouped; a dash for nothing."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"

"""The answer of a check: every limit of every layer with what is used of it, as tables and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from spikeport.targets.loihi.chips import NO_FIGURE, RESOURCES, Chip
from spikeport.targets.loihi.mapping import Mapping

#: Of ``Compatibility.lines``: every limit a line.
COLUMNS = ("layer", "rule", "used", "available", "unit", "fits", "remedy")
#: Of ``Compatibility.layers``: every layer a line, with the rules that say most about its size.
LAYER_COLUMNS = ("layer", "cores", *(name for name, _ in RESOURCES.values()), "worst-case current", "breaks")


@dataclass(frozen=True)
class Row:
    """One limit of one layer.

    Attributes:
        layer: a population, the input, or the chip.
        used: the worst value found; None where nothing was counted.
        available: the largest legal value (the smallest is 0); None where no figure is public.
        remedy: what to do where it does not fit; empty where it fits.
        note: a remark without a limit: it always fits.
    """

    layer: str
    rule: str
    used: float | None
    available: float | None
    unit: str
    fits: bool
    remedy: str = ""
    note: bool = False

    def message(self, chip: Chip) -> str:
        """The error of a row that does not fit."""
        if self.used is None:
            return self.remedy
        beyond = "is below 0" if self.used < 0 else f"exceeds {_number(self.available)} of {chip.title}"
        return f"{self.layer}: {self.rule} {_number(self.used)} {beyond}; {self.remedy}"

    @property
    def load(self) -> str:
        return _number(self.used) + (f" / {_number(self.available)}" if self.available is not None else "")

    def cells(self) -> tuple[str, ...]:
        unknown = self.available is None and self.used is not None and not self.note
        available = NO_FIGURE if unknown else _number(self.available)
        fits = "yes" if self.fits else "no"
        return (self.layer, self.rule, _number(self.used), available, self.unit, fits, self.remedy)


@dataclass(frozen=True)
class Compatibility:
    """The answer of a check.

    Attributes:
        mapping: neurons on cores; None where the network does not compile.
    """

    chip: Chip
    input_mode: str
    rows: tuple[Row, ...]
    mapping: Mapping | None

    @property
    def fits(self) -> bool:
        return all(row.fits for row in self.rows)

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(row.message(self.chip) for row in self.rows if not row.fits)

    def lines(self) -> list[tuple[str, ...]]:
        """The table under ``COLUMNS``."""
        return [row.cells() for row in self.rows]

    def layers(self) -> list[tuple[str, ...]]:
        """The table under ``LAYER_COLUMNS``: used, or used / available, on the layer's fullest core."""
        table = []
        for layer in dict.fromkeys(row.layer for row in self.rows if row.layer != self.chip.title):
            rules = {row.rule: row for row in self.rows if row.layer == layer}
            cells = [rules[name].load if name in rules else "" for name in LAYER_COLUMNS[1:-1]]
            table.append((layer, *cells, ", ".join(row.rule for row in rules.values() if not row.fits)))
        return table

    def summary(self) -> str:
        """One or two lines on cores and chips."""
        if self.mapping is None:
            return "does not compile"
        m, cores = self.mapping, len(self.mapping.cores)
        shares = [
            f"{sum(getattr(core.usage, key) for core in m.cores) / (cores * limit):.0%} of its {RESOURCES[key][0]}"
            for key, limit in self.chip.limits.items()
            if limit is not None
        ]
        return (
            f"{cores} cores on {m.chips} {self.chip.title}; no split needs fewer than {m.lower_bound} "
            f"({RESOURCES[m.bound_by][0]}). A core uses, on average, {', '.join(shares)}; "
            + ("it stores a kernel once." if m.shared else "every synapse is stored.")
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "chip": self.chip.name,
            "input": self.input_mode,
            "fits": self.fits,
            "errors": list(self.errors),
            "rows": [asdict(row) for row in self.rows],
            "limits": {k: {"value": getattr(self.chip, k), "source": v} for k, v in self.chip.sources.items()},
            "mapping": _mapping(self.mapping) if self.mapping else None,
        }


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def _mapping(mapping: Mapping) -> dict[str, Any]:
    return {
        "kernels": "stored once per core" if mapping.shared else "each synapse stored",
        "chips": mapping.chips,
        "cores": len(mapping.cores),
        "lower_bound": mapping.lower_bound,
        "bound_by": mapping.bound_by,
        "per_core": [
            {
                "slices": [[s.population, list(s.channels), list(s.pixels)] for s in core.slices],
                **core.usage._asdict(),
                "utilisation": core.utilisation(mapping.chip),
            }
            for core in mapping.cores
        ],
    }

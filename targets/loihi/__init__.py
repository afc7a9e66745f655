"""Intel Loihi: compiled to integers, simulated in our fixed-point engine and in Intel's Lava."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import nir
import numpy as np

from spikeport.core.errors import CheckFailed, SpikeportError
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import Run
from spikeport.targets.base import check_labels, pick_engine
from spikeport.targets.loihi.against_float import against_float, own_model, require_own
from spikeport.targets.loihi.check import check_graph
from spikeport.targets.loihi.chips import find_chip
from spikeport.targets.loihi.compatibility import Compatibility
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.layers import require_input_mode
from spikeport.targets.loihi.netx import BIAS_EXP, for_netx, write_net
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord, differences, samples_digest

__all__ = ["LoihiProgram", "LoihiTarget"]


class LoihiTarget:
    """See ``spikeport.targets.base.Target``; takes a spiking network as a NIR file."""

    name = "loihi"
    kind = "snn"
    engines: tuple[str, ...] = ("fixed", "lava")
    file = "loihi/program.npz"
    record = "{engine}.npz"
    help = "Intel Loihi 1 and 2, simulated: our fixed-point engine, or Intel's Lava"

    def require(self, chip: str | None, input_mode: str) -> None:
        """Raises SpikeportError for a chip or an input mode that ``compile`` does not know."""
        find_chip(chip)
        require_input_mode(input_mode)

    def compile(
        self,
        source: nir.NIRGraph,
        program: Path,
        calibration: np.ndarray | None = None,
        input_mode: str = "graded",
        net: Path | None = None,
    ) -> LoihiProgram:
        """See ``Target.compile``.

        Args:
            input_mode: "graded" or "host-current", see ``LoihiProgram``.
            net: the file to write for lava-dl too, for which biases become whole weight steps.
        """
        # Rounding biases afterwards would leave thresholds that were chosen for what they had been.
        compiled = compile(source, calibration, input_mode, BIAS_EXP if net else 0)
        if net:
            compiled = for_netx(compiled)
        compiled.save(program)
        if net:
            write_net(compiled, net)
        return compiled

    def check(
        self,
        source: nir.NIRGraph,
        chip: str | None = None,
        calibration: np.ndarray | None = None,
        input_mode: str = "graded",
    ) -> Compatibility:
        """See ``Target.check``; ``chip`` is "loihi1" or "loihi2" (where None), ``input_mode`` as of ``compile``."""
        return check_graph(source, chip, input_mode, calibration=calibration)

    def simulate(
        self,
        program: Path,
        x: np.ndarray,
        labels: np.ndarray | None = None,
        engine: str | None = None,
        progress: Progress = silent,
        run: Run | None = None,
        network: Any = None,
        **options: Any,
    ) -> SpikeRecord:
        """See ``Target.simulate``; a record of Lava is held against the fixed engine before it is returned.

        With ``run``, or ``network``, the model of a program that is of no run, the fixed engine is held against the
        float model: ``details["against_float"]`` of the record, see ``targets.loihi.against_float``.

        Raises:
            CheckFailed: a current wrapped or a voltage saturated, so the result would not be the network's; or
                Lava and the fixed engine disagree in any layer, sample or step.
        """
        loaded = LoihiProgram.load(program)
        if x.ndim < 2:
            raise SpikeportError(f"the samples have shape {list(x.shape)}; give [N, ...]")
        model: Any = run
        if run is not None:  # both before the engine takes its time
            require_own(run, loaded)
        if network is not None:
            if run is not None:
                raise SpikeportError(f"{run.path} is a run, which has its network; leave the other out")
            model = own_model(network, x.shape, loaded)
        classes = loaded.population(loaded.output).neurons
        check_labels(labels, x.shape[0 if loaded.held else 1], classes)
        rasters = options.get("rasters", 0)
        if not isinstance(rasters, Integral) or rasters < 0:
            raise SpikeportError(f"spike maps of {rasters} samples asked for; 0 keeps none")
        engine = pick_engine(self, engine)
        fixed = partial(simulate_fixed, loaded) if model is None else partial(against_float, model, loaded)
        if engine == "fixed":
            _require_options(engine, simulate_fixed, options)
            record = fixed(x, labels, progress=progress, **options)
        else:
            from spikeport.targets.loihi.lava import simulate_lava

            _require_options(engine, simulate_lava, options)
            record = simulate_lava(loaded, x, labels, progress=progress, **options)
            ours = fixed(x, labels)
            found = differences(ours, record)
            if found:
                raise CheckFailed("Lava and the fixed engine disagree: " + "; ".join(found[:3]))
            if model is not None:
                record.details["against_float"] = ours.details["against_float"]
        for what, counts in (("wrapped", record.wraps), ("saturated", record.saturations)):
            for layer, count in counts.items():
                if count:
                    raise CheckFailed(
                        f"{layer}: its state {what} {count} times in engine {record.engine}, so the result is not the "
                        "network's; train with smaller weights or fewer time steps"
                    )
        record.details["samples_digest"] = samples_digest(x)
        return record


def _require_options(engine: str, function: Callable, options: Iterable[str]) -> None:
    unknown = ", ".join(name for name in options if name not in inspect.signature(function).parameters)
    if unknown:
        raise SpikeportError(f"engine {engine} has no option {unknown}; leave it out")

"""One network trained with several seeds: the mean and how far it scatters."""

from spikeport.core.config import TrainConfig
from spikeport.profiling.studies.study import Study, seeds_from


def seeds_study(base: TrainConfig, count: int = 3) -> Study:
    """One row, trained with ``count`` seeds from that of ``base`` on. Raises SpikeportError for fewer than one."""
    name = f"{base.dataset}-{base.model}-{base.kind}"
    return Study("seeds", {name: base}, seeds_from(base.seed, count))

"""Models and data sets side by side, CNN and SNN: the paper's Tables 4.1 and 4.3."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from spikeport.core.config import TrainConfig
from spikeport.core.errors import SpikeportError
from spikeport.core.models import KINDS, MODELS
from spikeport.profiling.studies.study import Study, seeds_from


def compare_study(
    base: TrainConfig,
    models: Sequence[str] = tuple(MODELS),
    kinds: Sequence[str] = KINDS,
    datasets: Mapping[str, str | None] | None = None,
    seeds: int = 1,
) -> Study:
    """One row per data set, model and kind, all with the settings of ``base``.

    Args:
        datasets: name -> its folder (None: embedded); that of ``base`` where left out.

    Raises:
        SpikeportError: nothing to compare, a model or kind that does not exist, fewer than one seed.
    """
    datasets = {base.dataset: base.data} if datasets is None else datasets
    if not (models and kinds and datasets):
        raise SpikeportError("nothing to compare; name at least one model, kind and data set")
    for given, known in ((models, tuple(MODELS)), (kinds, KINDS)):
        for name in given:
            if name not in known:
                raise SpikeportError(f"{name!r} is not one of {', '.join(known)}")
    rows = {
        f"{dataset}-{model}-{kind}": replace(base, model=model, kind=kind, dataset=dataset, data=folder)
        for dataset, folder in datasets.items()
        for model in models
        for kind in kinds
    }
    return Study("compare", rows, seeds_from(base.seed, seeds))

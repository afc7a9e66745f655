"""What a study's table needs of a trained network beyond its accuracy."""

from typing import Any

import torch

from spikeport.core.files import write_json
from spikeport.core.runs import Run
from spikeport.profiling.counting import count_operations
from spikeport.profiling.energy import HOROWITZ, paper_count
from spikeport.profiling.studies.study import MEASURED_FILE

#: Test images on which operations are counted.
SAMPLES = 128


def measure(run: Run) -> None:
    """Counts a trained network's operations and writes them into its run folder.

    Means per image over the first test images: rate (spikes per neuron and step), macs, acs and energy_nj of the whole
    inference, all T steps, and the same as the paper counts them (one step).
    """
    images, _ = run.samples(SAMPLES)
    model = run.model()
    counts = count_operations(model, torch.from_numpy(images))
    paper = paper_count(counts)
    acs, macs = counts.total("acs"), counts.total("macs")
    value: dict[str, Any] = {
        "samples": counts.samples,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rate": counts.rate,
        "macs": macs,
        "acs": acs,
        "energy_nj": HOROWITZ.of(acs, macs),
        "paper_macs": paper.macs,
        "paper_acs": paper.acs,
        "paper_energy_nj": paper.energy_nj,
    }
    write_json(run.path / MEASURED_FILE, value)

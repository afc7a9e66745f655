"""Rates over neurons, steps and classes equal those of the spikes themselves."""

import numpy as np
import pytest
import torch
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.profiling.counting import count_operations
from spikeport.profiling.statistics import firing_statistics


def test_statistics_equal_those_of_the_spikes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 50), LIF(time_steps=4, constant_input=True, v_threshold=0.3), TimeMean(4)).eval()
    with torch.no_grad():
        model[0].bias[:5] = 9.0
        model[0].bias[5:9] = -9.0
    x, labels = torch.randn(100, 6), np.arange(100) % 3
    seen: list[torch.Tensor] = []
    handle = model[1].register_forward_hook(lambda m, a, y: seen.append(y.unflatten(0, (4, -1))))
    found = firing_statistics(count_operations(model, x), labels)["1"]
    handle.remove()
    spikes = torch.cat(seen, 1).numpy()  # [T, N, neurons]; more than one batch
    assert len(seen) > 1
    assert found.neurons == 50
    assert found.rate == pytest.approx(spikes.mean())
    assert found.silent == (spikes.sum((0, 1)) == 0).sum() >= 4
    assert found.saturated == (spikes.sum((0, 1)) == 400).sum() >= 5
    assert found.steps == pytest.approx(tuple(spikes.mean((1, 2))))
    assert found.classes == pytest.approx({c: spikes[:, labels == c].mean() for c in range(3)})
    assert sum(found.histogram) == 50
    assert found.histogram == tuple(np.histogram(spikes.sum((0, 1)), np.arange(0, 401, 20))[0])


def test_a_model_without_spikes_and_missing_labels_are_refused():
    cnn = count_operations(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))
    with pytest.raises(SpikeportError, match="without spiking layers has no firing rates"):
        firing_statistics(cnn)
    snn = count_operations(nn.Sequential(LIF(time_steps=2, constant_input=True)), torch.ones(3, 2))
    with pytest.raises(SpikeportError, match="2 labels for 3 samples"):
        firing_statistics(snn, np.zeros(2))

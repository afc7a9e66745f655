"""What the input or a population sends, and what is counted of it: spikes, checksums, synaptic events."""

import zlib
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from spikeport.core import geometry
from spikeport.core.geometry import Pair
from spikeport.targets.loihi.program import Synapse


@dataclass(frozen=True, eq=False)
class Activity:
    """Maps [M, C, H, W] in float32, channels-last: graded values or spikes (0 or 1)."""

    values: Tensor
    spikes: bool = True

    @property
    def active(self) -> Tensor:
        """1 where a value is not 0, float32 [M, C, H, W]."""
        return self.values if self.spikes else (self.values != 0).float()

    @cached_property
    def channels(self) -> Tensor:
        """How many channels are active at each position, float64 [M, H*W]. (Sums below 2^24: float32 is exact.)"""
        return self.active.sum(1).flatten(1).double()

    def counts(self) -> np.ndarray:
        """Active values per map, int64 [M]."""
        counts: np.ndarray = self.channels.sum(1).long().numpy()
        return counts

    def checksums(self) -> np.ndarray:
        """CRC-32 of each map's activity, packed eight to a byte in the order H, W, C, uint32 [M]."""
        maps = self.values.permute(0, 2, 3, 1).flatten(1).numpy()
        return np.array([zlib.crc32(row) for row in np.packbits(maps != 0, axis=1)], dtype=np.uint32)

    def events(self, synapse: Synapse) -> np.ndarray:
        """Synaptic events per map, int64 [M]: weights read and added, padding excluded."""
        reached = _reached((self.values.shape[2], self.values.shape[3]), *synapse.geometry)
        if synapse.links is None:
            weighted = self.channels * (len(synapse.weight) // synapse.groups)
        else:
            weighted = (self.active * torch.from_numpy(synapse.links).double()[:, None, None]).sum(1).flatten(1)
        counts: np.ndarray = (weighted @ reached).long().numpy()
        return counts


@cache
def _reached(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Output positions that each position reaches, float64 [H*W]."""
    return torch.from_numpy(geometry.fan_out(size, kernel, stride, padding, dilation)).double().flatten()

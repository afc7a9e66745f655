"""BatchNorm and LIF in one, for the tests that compare them with the two layers."""

from torch import Tensor, nn


class InOne(nn.Sequential):
    """What ``nn.Sequential(BatchNorm2d, LIF)`` runs one after the other."""

    def forward(self, input: Tensor) -> Tensor:
        norm, neurons = self
        return neurons(input, norm)

"""``--input host-current``: the first synapses run on the host, in float, and reach the chip as biases.

For both chips; the way for Loihi 1, which has no graded spikes. Between two samples the host writes the bias of every
neuron that the input reaches: ``mantissa << exponent``, constant over the T steps of a sample.
"""

import numpy as np
import torch
from torch.nn import functional as F

from spikeport.core.errors import SpikeportError
from spikeport.targets.loihi.arithmetic import BIAS_MANT_MAX
from spikeport.targets.loihi.program import LoihiProgram, Synapse


def bias_mantissas(program: LoihiProgram, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the host writes for samples x, float64 [N, 1, C, H, W]: population -> int32 [N, C, H, W]; the population's
    own bias is in it. Empty where the chip computes everything.

    Raises:
        SpikeportError: a mantissa that leaves its 13 bits.
    """
    written = {}
    for population in program.populations:
        synapses = [s for s in program.into(population.name) if s.host]
        if not synapses:
            continue
        # One by one: the sums' last bits must not depend on which samples run together.
        currents = np.stack([sum(_convolved(s, sample) for s in synapses) for sample in x])
        mant = np.rint(currents / (1 << population.bias_exp)) + (population.bias >> population.bias_exp)
        if (top := np.abs(mant).max()) > BIAS_MANT_MAX:
            raise SpikeportError(
                f"{population.name}: the host's current needs a bias mantissa of {top:.0f}, the largest is "
                f"{BIAS_MANT_MAX}; compile with a calibration that covers the input"
            )
        written[population.name] = mant.astype(np.int32)
    return written


def _convolved(synapse: Synapse, sample: np.ndarray) -> np.ndarray:
    weight = torch.from_numpy(synapse.weight)
    options = (synapse.stride, synapse.padding, synapse.dilation, synapse.groups)
    return F.conv2d(torch.from_numpy(sample), weight, None, *options)[0].numpy()

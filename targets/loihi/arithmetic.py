"""Loihi's integer neuron, in int64: what ``neurons``, its fast form, is held to and falls back to.

Source of the semantics: lava-nc 0.10, ``lava.proc.lif.models.PyLifModelBitAcc`` (bit-accurate with Loihi), held
against it integer for integer by the tests. Widths: M. Davies et al., Loihi, IEEE Micro 38(1), 2018.
"""

import torch
from torch import Tensor

#: Currents, thresholds and voltages are aligned by 6 bits to the weights.
SHIFT = 6
#: Decays count in 1/4096.
DECAY_ONE = 4096
#: u wraps to (-STATE_LIMIT, STATE_LIMIT]; v saturates at +-(STATE_LIMIT - 1): 24 bits with sign.
STATE_LIMIT = 1 << 23

#: Largest integers the chip's registers hold, for the compiler and the fit check.
WEIGHT_MAX = 127
VTH_MAX = (1 << 17) - 1
BIAS_MANT_MAX = 4095
BIAS_EXP_MAX = 7
CURRENT_MAX = (STATE_LIMIT >> SHIFT) - 1
NO_CURRENT_MEMORY = DECAY_ONE - 1
#: A threshold that v cannot pass: an integrator never fires.
VTH_NEVER = STATE_LIMIT >> SHIFT


def decay(x: Tensor, retained: int | Tensor) -> Tensor:
    """x * retained / 4096, towards zero; |x| <= 2^24."""
    if isinstance(retained, int) and retained == 0:
        return torch.zeros_like(x)
    if isinstance(retained, int) and retained == DECAY_ONE:
        return x
    return torch.div(x * retained, DECAY_ONE, rounding_mode="trunc")


def charge(
    u: Tensor, v: Tensor, a: Tensor, du: int | Tensor, dv: int | Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, int, int]:
    """One step of current and voltage, before the spike.

    Args:
        u, v: state, int64 [N, C, H, W].
        a: synaptic input in weight units, int64, same shape.
        du, dv: see ``Population``; [C, 1, 1] where channels differ.
        bias: int64, broadcast against v.

    Returns:
        u, v, the number of wraps of u and of saturations of v.
    """
    u = decay(u, DECAY_ONE - (du + 1)) + (a << SHIFT)
    high, low = u > STATE_LIMIT, u <= -STATE_LIMIT
    wraps = int(high.sum()) + int(low.sum())
    if wraps:
        u = u - (high.long() - low.long()) * (2 * STATE_LIMIT)
    v = decay(v, DECAY_ONE - dv) + u + bias
    saturations = int((v.abs() >= STATE_LIMIT - 1).sum())
    if saturations:
        v = v.clamp(1 - STATE_LIMIT, STATE_LIMIT - 1)
    return u, v, wraps, saturations


def fire(v: Tensor, vth: int | Tensor) -> tuple[Tensor, Tensor]:
    """Spikes (bool) where v > vth * 64, and v after the hard reset to 0 (u is kept)."""
    spikes = v > (vth << SHIFT)
    return spikes, v.masked_fill(spikes, 0)

"""The scale S of a population, shared by all synapses into it, its bias and its threshold.

It is the largest for which every integer fits its register and the worst-case current cannot wrap.
"""

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.targets.loihi import arithmetic as loihi
from spikeport.targets.loihi.constants import Constants, Values
from spikeport.targets.loihi.convolution import worst_currents

#: The fewest steps a layer's largest weight may keep (4 bits with its sign): below, rounding decides what it says.
FEWEST_STEPS = 8


class CoarseInput(SpikeportError):
    """The network's input is too strong beside spikes that enter the same layer, or leaves its weights too few steps.

    A smaller range of it may do.
    """


def largest_scale(
    name: str,
    weights: list[np.ndarray],
    inputs: list[tuple[int, int]],
    bias: np.ndarray,
    constants: Constants,
    steps: int,
    host: np.ndarray | None = None,
) -> float:
    """The largest S for which all of these hold:

    - |w * S| <= 127;
    - threshold * S <= 131071 (17 bits), and whole where v leaves the grid of the weights: rounding the threshold then
      costs nothing (of several thresholds in a layer, the lowest);
    - |bias * S| * 64 <= 4095 << 7 (mantissa 13 bits, exponent at most 7);
    - ``reach`` <= 131071: u cannot wrap and v cannot saturate, whatever the input.

    Args:
        weights: per synapse [C, ...]; inputs: the smallest and the largest value that enters each.
        bias: [C], or [2, C], the smallest and the largest within each map.
        host: see ``Layer``; it counts like a bias.

    Raises:
        SpikeportError: all weights are zero, no scale is finite, or the threshold ends below 1.
    """
    threshold = constants.threshold
    top = max((float(np.abs(w).max(initial=0.0)) for w in weights), default=0.0)
    most = 0.0 if host is None else host
    bias_top = float(np.max(np.abs(bias) + most))
    if top == 0 and not np.any(most):
        raise SpikeportError(
            f"{name}: all of its weights are zero, so it has no scale; leave it out, and the layer that feeds it"
        )
    scale = loihi.WEIGHT_MAX / top if top else np.inf
    if threshold is not None:
        scale = min(scale, loihi.VTH_MAX / float(np.max(threshold)))
    if bias_top > 0:
        # Two roundings, of the bias and of the host's current, may add up to one mantissa step.
        mantissa = loihi.BIAS_MANT_MAX - (host is not None)
        scale = min(scale, (mantissa << loihi.BIAS_EXP_MAX) / (bias_top * (1 << loihi.SHIFT)))
    if not 0 < scale < np.inf:  # it would never come to an end
        raise SpikeportError(
            f"{name}: weights of {top:.3g} and a bias of {bias_top:.3g} have no finite scale to integers; "
            "bring its weights, bias and threshold near 1"
        )
    while True:
        if threshold is not None:
            lowest = float(np.min(threshold))
            if lowest * scale < 1:
                raise SpikeportError(
                    f"{name}: at the scale its weights allow ({scale:.3g}) the threshold becomes "
                    f"{lowest * scale:.3g} < 1; train with smaller weights or a larger threshold"
                )
            if not constants.on_grid.all() or host is not None:
                scale = np.floor(lowest * scale * (1 + 1e-12)) / lowest
        integers = [np.rint(w * scale) for w in weights]
        excess = reach(integers, inputs, bias * scale, constants, scale, steps, most * scale) / loihi.CURRENT_MAX
        if excess <= 1:
            return float(scale)
        scale /= max(excess, 1.0005)


def require_steps(
    name: str,
    weights: list[np.ndarray],
    inputs: list[tuple[int, int]],
    bias: np.ndarray,
    scale: float,
    constants: Constants,
    steps: int,
    balanced: bool = False,
) -> None:
    """Refuses a scale at which weights vanish in rounding, unless they are whole numbers there.

    What a step of a synapse adds at its largest input must be at most an eighth of what the strongest synapse of the
    layer adds: of a lone synapse, its largest weight keeps 8 steps; a weak one beside others may keep fewer.

    Args:
        balanced: refuse (``CoarseInput``) less than half as many steps for the largest weight as for the input too.
    """
    tops = [float(np.abs(np.rint(w * scale)).max(initial=0.0)) for w in weights]
    entering = [max(abs(low), abs(high)) for low, high in inputs]
    if balanced and 2 * max(tops, default=0.0) < max(entering, default=0):
        raise CoarseInput(f"{name}: less than half as many steps for its weights as for its input")
    strongest = max((top * most for top, most in zip(tops, entering, strict=True)), default=0.0)
    coarse = [at for at, w in enumerate(weights) if FEWEST_STEPS * entering[at] > strongest and not _whole(w * scale)]
    if not coarse:
        return
    worst = max(coarse, key=lambda at: entering[at])
    threshold, kind = constants.threshold, SpikeportError
    if max(tops) >= FEWEST_STEPS:
        limit = f"its other inputs set the scale, and this one reaches {entering[worst]}"
        remedy, kind = "put neurons between the network's input and this layer", CoarseInput
    elif threshold is not None and float(np.max(threshold)) * scale > loihi.VTH_MAX / 2:
        limit, remedy = f"its threshold must stay <= {loihi.VTH_MAX}", "train with a smaller threshold"
    elif np.abs(bias).max() * scale > (bias_max := loihi.BIAS_MANT_MAX << loihi.BIAS_EXP_MAX >> loihi.SHIFT) / 2:
        limit, remedy = f"its bias must stay <= {bias_max}", "train with smaller biases"
    else:
        limit = f"bias and currents of {steps} steps must stay <= {loihi.CURRENT_MAX}, whatever the input"
        remedy = "use fewer time steps or fewer inputs"
        if entering[worst] > 1:
            remedy += ", or a network's first layer with --input host-current (input_mode)"
    which = "largest weight" if len(weights) == 1 else "largest weight on one of its inputs"
    raise kind(
        f"{name}: its {which} becomes {tops[worst]:.0f} of {loihi.WEIGHT_MAX}, at least {FEWEST_STEPS} are needed: "
        f"{limit}; {remedy}"
    )


def _whole(values: np.ndarray) -> bool:
    """Whether rounding changes nothing."""
    return bool(np.abs(values - np.rint(values)).max(initial=0.0) <= 1e-6 * np.abs(values).max(initial=0.0))


def reach(
    weights: list[np.ndarray],
    inputs: list[tuple[int, int]],
    bias: np.ndarray,
    constants: Constants,
    scale: float,
    steps: int,
    host: Values = 0.0,
) -> float:
    """The largest magnitude that u or v can have in ``steps`` steps, whatever the input, in weight units.

    Upwards, v starts each step at most at the threshold, for above it is reset; downwards it builds up.
    """
    worst = [worst_currents(w, low, high) for w, (low, high) in zip(weights, inputs, strict=True)]
    lowest, highest = np.broadcast_to(bias, (2, bias.shape[-1]))
    up, down = np.sum(worst, axis=0) if worst else np.zeros((2, len(highest)))
    of_u, of_current, of_bias = constants.build_up(steps)
    rounding = 1 if np.ndim(host) == 0 else 1 << loihi.BIAS_EXP_MAX >> loihi.SHIFT
    raised, lowered = host + highest + rounding, host - lowest + rounding
    if not np.all(constants.loss_u == 1):
        # A current stays while a bias does not: what one step adds may be there before the other takes it away.
        rising = of_current * up + of_bias * np.maximum(raised, 0)
        falling = of_current * down + of_bias * np.maximum(lowered, 0)
    else:
        falling = of_bias * (down + lowered)
        if constants.threshold is None:
            rising = of_bias * (up + raised)
        else:
            rising = up + raised + (1 - constants.dv / loihi.DECAY_ONE) * constants.threshold * scale
    return float(np.max([of_u * up, of_u * down, rising, falling]))

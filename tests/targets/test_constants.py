"""What a NIR neuron does in a step of the chip: its decays, what builds up, and what no chip does."""

import nir
import numpy as np
import pytest

from spikeport.core import SpikeportError
from spikeport.targets.loihi.constants import Constants, constants_of

DT = 1e-4
SHAPE = (2, 3, 3)
NODES = {
    nir.IF: {"r": 1 / DT, "v_threshold": 1.0, "v_reset": 0.0},
    nir.LIF: {"tau": 2 * DT, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0},
    nir.CubaLIF: {
        **{"tau_syn": 4 * DT, "tau_mem": 2 * DT, "r": 1.0, "w_in": 1.0},
        **{"v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0},
    },
}
#: Every number of every kind of neuron.
FIELDS = [(kind, name) for kind, values in NODES.items() for name in values]


def node(kind, **channels):
    """A node over maps of two channels: one value for both, or one for each."""
    values = {name: np.broadcast_to(value, (2,)) for name, value in (NODES[kind] | channels).items()}
    return kind(**{name: np.broadcast_to(value[:, None, None], SHAPE).copy() for name, value in values.items()})


def constants(kind, at_least=False, **channels):
    return constants_of("n", node(kind, **channels), SHAPE, DT, at_least)


def test_what_builds_up_is_what_decays_as_they_are_rounded_leave():
    assert Constants(loss_u=0.25, loss_v=0.5).build_up(3) == (2.3125, 3.4375, 1.75)
    assert Constants(loss_u=1.0, loss_v=0.0).build_up(5) == (1, 5, 5)
    of_u, *_ = Constants(loss_u=0.3).build_up(2)  # 1228.8 of 4096
    assert of_u == 1 + 1 - 1229 / 4096
    *_, of_bias = Constants(loss_v=1.0).build_up(2)  # at most 4095 of 4096
    assert of_bias == 1 + 1 / 4096


def test_a_step_of_each_kind_of_neuron():
    found = constants(nir.IF, r=3 / DT, v_threshold=[1.0, 2.0], v_reset=0.25)
    assert (found.loss_u, found.loss_v, found.offset) == (1, 0, 0)
    assert found.gain == pytest.approx(3)
    assert found.threshold.tolist() == [0.75, 1.75]
    found = constants(nir.LIF, tau=[2 * DT, 4 * DT], r=3.0, v_leak=0.5, v_reset=0.25)
    assert found.loss_v == pytest.approx([0.5, 0.25])
    assert found.gain == pytest.approx([1.5, 0.75])
    assert found.offset == pytest.approx([0.125, 0.0625])
    found = constants(nir.CubaLIF, w_in=3.0, r=5.0, v_leak=1.0)
    assert (found.loss_u, found.loss_v) == pytest.approx((0.25, 0.5))
    assert found.gain == pytest.approx(3 * 0.25 * 5 * 0.5)
    assert found.offset == pytest.approx(0.5)


@pytest.mark.parametrize(("kind", "name"), FIELDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named(kind, name, value):
    with pytest.raises(SpikeportError, match=f"n: its {name} is not finite"):
        constants(kind, **{name: [NODES[kind][name], value]})


@pytest.mark.parametrize(("kind", "name"), [f for f in FIELDS if f[1].startswith("tau")])
@pytest.mark.parametrize("steps", [0.5, 0.0, -2.0])
def test_a_time_constant_below_a_step_is_named(kind, name, steps):
    with pytest.raises(SpikeportError, match=f"n: {name} is {steps:g} steps; at least 1 is needed"):
        constants(kind, **{name: [2 * DT, steps * DT]})
    assert constants(kind, **{name: DT * (1 - 1e-8)})  # float32


@pytest.mark.parametrize("at_least", [False, True])
@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_a_threshold_not_above_the_reset_is_named(kind, threshold, at_least):
    with pytest.raises(SpikeportError, match="n: its threshold is not above its reset"):
        constants(kind, at_least, v_threshold=[1.0, threshold], v_reset=0.5)


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_neurons_of_a_channel_that_differ_are_named(kind, name):
    uneven = node(kind)
    getattr(uneven, name)[1, 2, 2] *= 2
    getattr(uneven, name)[1, 2, 2] += 0.125
    with pytest.raises(SpikeportError, match=f"n: {name} differs between neurons of a channel"):
        constants_of("n", uneven, SHAPE, DT, False)

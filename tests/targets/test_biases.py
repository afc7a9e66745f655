"""Biases in weight steps become mantissas of 13 bits with a common exponent, and leave room for what the host adds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeport.core import SpikeportError
from spikeport.targets.loihi.compile import population, quantise_bias
from spikeport.targets.loihi.constants import Constants
from spikeport.targets.loihi.layers import Layer
from spikeport.targets.loihi.scales import largest_scale


def test_a_bias_and_a_current_of_the_host_may_both_be_rounded_up():
    """At exponent 7 a mantissa is 2 weight units: at scale 1, 1001.5 of them and 3093.5 would become 4096."""
    bias, host = np.array([2003.0]), np.array([6187.0])
    scale = largest_scale("p", [], [], bias, Constants(), 1, host)
    mant, exponent = quantise_bias(bias * scale, host * scale)
    assert exponent == 7
    assert mant + np.rint(host * scale / 2) <= 4095


@given(st.lists(st.floats(-8000, 8000), min_size=1, max_size=6))
def test_bias_is_rounded_at_the_smallest_exponent(values):
    bias = np.array(values)
    mant, exponent = quantise_bias(bias)
    assert np.abs(mant).max() <= 4095
    assert np.abs((mant.astype(float) * 2**exponent) - bias * 64).max() <= 2**exponent / 2
    assert exponent == 0 or np.abs(np.rint(bias * 64 / 2 ** (exponent - 1))).max() > 4095


@given(
    st.lists(st.floats(-4000, 4000), min_size=2, max_size=2),
    st.sampled_from([(2,), (2, 3, 3)]),
    st.lists(st.floats(0, 4000), min_size=2, max_size=2),
)
def test_mantissas_leave_room_for_the_hosts_current(values, shape, host):
    """Channel by channel, for a bias that is one number or differs within maps."""
    bias = np.broadcast_to(np.reshape(values, (2,) + (1,) * (len(shape) - 1)), shape)
    mant, exponent = quantise_bias(bias, np.array(host))
    assert mant.shape == shape

    def fits(exponent):
        unit = 2**exponent / 64
        return all((np.rint(np.abs(v) / unit) + np.ceil(h / unit)) <= 4095 for v, h in zip(values, host, strict=True))

    assert fits(exponent)
    assert exponent == 0 or not fits(exponent - 1)


def test_a_bias_beyond_the_largest_mantissa_and_exponent_is_refused():
    assert quantise_bias(np.array([-8190.0])) == (-4095, 7)
    with pytest.raises(SpikeportError, match="a bias of 8192 weight steps does not fit 13 bits at exponent 7"):
        quantise_bias(np.array([1.0, -8192.0]))


def test_what_stays_of_a_neuron_without_memory_is_taken_off_a_bias_in_units_of_v_alone():
    constants = Constants(loss_v=1.0, threshold=1000.0)
    for bias, mant, exponent in ((10.0, 640 - 1000 // 64, 0), (5003.0, 2502, 7)):
        p = population(Layer("p", "", (1, 1, 1), constants, (), (), torch.tensor([bias]).double(), 1.0), 1)
        assert (int(p.bias_mant[0]), p.bias_exp) == (mant, exponent)

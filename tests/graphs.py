"""NIR graphs: of a model of ours, and of another framework."""

from itertools import pairwise

import nir
import numpy as np

from spikeport.export.nir_foreign import with_metadata
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace


def graph_of(net, x, bound=4.0):
    """Of samples [N, ...], or [T, N, ...] where the network's input changes; a bound of None leaves the range open."""
    shape, kind = (tuple(x.shape[1:]), "constant") if x.ndim < 5 else (tuple(x.shape[2:]), "sequence")
    traced = trace(net, shape)
    return build_nir(traced, Metadata(traced.time_steps, input=kind, input_shape=shape, input_bound=bound))[0]


def flat(nodes, edges=None, steps=4, sequence=False):
    """A foreign graph of these nodes, in a row where there are no edges, over ``steps`` steps of 1 ms."""
    return with_metadata(nir.NIRGraph(nodes, edges or list(pairwise(nodes)), type_check=False), steps, 1e-3, sequence)


def integrators(size, threshold):
    """IF neurons that add each step's current."""
    return nir.IF(np.full(size, 1e3), np.full(size, threshold))

"""NIR graphs: of a model of ours, and of another framework."""

from itertools import pairwise

import nir
import numpy as np

from spikeport.export.nir_foreign import with_metadata
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace


def graph_of(net, x, bound=4.0):
    traced = trace(net, tuple(x.shape[1:]))
    metadata = Metadata(traced.time_steps, input_shape=tuple(x.shape[1:]), input_bound=bound)
    return build_nir(traced, metadata)[0]


def flat(nodes, edges=None, steps=4, sequence=False):
    """A foreign graph of these nodes, in a row where there are no edges, over ``steps`` steps of 1 ms."""
    return with_metadata(nir.NIRGraph(nodes, edges or list(pairwise(nodes)), type_check=False), steps, 1e-3, sequence)


def integrators(size, threshold):
    """IF neurons that add each step's current."""
    return nir.IF(np.full(size, 1e3), np.full(size, threshold))

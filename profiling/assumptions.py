"""What the report counts and how, in words; printed at the end of every page."""

ASSUMPTIONS = (
    "The same constants are applied to the counts seen in training, in the fixed engine and in Lava, on the same "
    "images, so that a difference between these columns is spikes alone. But where the compiler makes one synapse of "
    "several layers (a depthwise and a pointwise convolution, say), they share a row: training's operations of all of "
    "them stand beside the events of the chip's one synapse, whose kernel is another.",
    "A whole inference is counted: all T steps. The first convolution, under a constant input, is charged once, "
    "in every column; the chip receives its graded input at every step (see graded events).",
    "An operation is effective where its input is not zero, dense in any case. A synaptic operation (AC) is one weight "
    "added because one spike arrived; a sum of k spikes costs k. Whether an input is spikes is decided for every image "
    "and step. A layer that meets averages of spikes multiplies in training; the chip composes it with the layer "
    "before it, and adds.",
    "Taps on padding are no operations. BatchNorm is folded into its convolution, to which it gives a bias, and costs "
    "nothing; behind anything else it is a convolution of each channel with one weight. Biases are additions of their "
    "own, which horowitz leaves out and lemaire charges.",
    "Max-pooling of spikes is counted as what it becomes on a chip: OR neurons with one synapse per tap. Average "
    "pooling is not counted.",
    "CNN: dense multiply-accumulates (zeros not skipped) at the same constants.",
    "Why target and training differ: weights of 8 bits and decays of 12 bits move a membrane across its threshold "
    "(quantisation). Timing does not: a population of depth d does at the chip's step t + d what the model's layer "
    "does at step t. Edges do not: both leave out taps on padding, and OR neurons give the maximum of spikes exactly.",
    "Firing rate: spikes per neuron and step, over all LIF layers, steps and samples. A silent neuron never fires on "
    "these images; a saturated one fires at every step of each.",
    "Divergence: absolute differences between the target's and training's spike counts of every image and step, "
    "summed, over training's spikes.",
    "Break-even: all firing rates scaled alike, so that their profile over the layers stays as measured; below the "
    "line the SNN takes less energy than its CNN.",
    "No figure here is a measurement of a chip. Energies rank networks under stated assumptions.",
)

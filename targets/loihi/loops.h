// Everything of neurons.cpp that is compiled once per instruction set, inside a namespace, and its entry points.
#include "lif_step.h"
#include "neuron_loops.h"
#include "gradient_loops.h"

constexpr Kernels KERNELS{run, gradient};

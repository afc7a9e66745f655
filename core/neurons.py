"""Layers of spiking networks whose time is folded into the batch."""

from torch import Tensor, nn

from spikeport.core.functional import join_time, next_momentum, require_numbers, run_lif, split_time, whole_steps
from spikeport.core.kernels import Neuron
from spikeport.core.kernels.batch_norm_lif import batch_norm_lif
from spikeport.core.surrogates import surrogate_named


class LIF(nn.Module):
    """LIF neurons in a network whose time is folded into the batch.

    Takes [T*N, ...] (time-major: the N samples of step 0 come first) and returns [T*N, ...] spikes; with
    ``constant_input=True`` it takes [N, ...], a current held for all T steps. It starts from rest at every
    call and holds no state: there is nothing to reset.

    Raises:
        SpikeportError: a batch that is not a multiple of ``time_steps``, or arguments ``lif`` refuses.
    """

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float = 0.0,
        surrogate: str = "atan",
        time_steps: int = 4,
        constant_input: bool = False,
        alpha: float | None = None,
        detach_reset: bool = False,
        decay_input: bool = True,
    ) -> None:
        super().__init__()
        surrogate_named(surrogate)
        require_numbers(tau, v_threshold, v_reset)
        self.tau, self.v_threshold, self.v_reset = tau, v_threshold, v_reset
        self.surrogate, self.alpha, self.detach_reset = surrogate, alpha, detach_reset
        self.time_steps, self.constant_input = whole_steps(time_steps), constant_input
        self.decay_input = decay_input

    def forward(self, x: Tensor, norm: nn.BatchNorm2d | None = None, pooled: bool = False) -> Tensor:
        """Spikes. ``norm`` is what x passes first: in one with the neurons, which saves passes over memory.

        ``pooled``, with ``norm``: the spikes go through 2x2 max-pooling as well, in one with both.
        """
        if not self.constant_input:
            x = split_time(x, self.time_steps)
        held = self.time_steps if self.constant_input else None
        if norm is None:
            spikes, _ = run_lif(x, None, self.neuron, held, membrane=False)
            return join_time(spikes)
        momentum = next_momentum(norm) if norm.training else 0.0
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, momentum, norm.eps)
        return join_time(batch_norm_lif(x, *statistics, self.neuron, held, pooled))

    @property
    def neuron(self) -> Neuron:
        """Its parameters as they are now."""
        surrogate = (self.surrogate, self.alpha, self.detach_reset)
        return Neuron(self.tau, self.v_threshold, self.v_reset, *surrogate, self.decay_input)

    @property
    def gain(self) -> float:
        """What a current of 1 adds to the membrane in one step."""
        return self.neuron.gain

    def extra_repr(self) -> str:
        return (
            f"tau={self.tau}, v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"surrogate={self.surrogate}, time_steps={self.time_steps}, constant_input={self.constant_input}"
        )


class HoldTime(nn.Module):
    """A constant current [N, ...] repeated for T steps, [T*N, ...], where it meets signals that change."""

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        self.time_steps = time_steps

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(self.time_steps, *[1] * (x.dim() - 1))


class Fired(nn.Identity):
    """Passes on the spikes that are computed for the LIF layer ``name`` elsewhere, as in a chip's integers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class TimeMean(nn.Module):
    """The read-out: class currents [T*N, K] to their mean over time [N, K]."""

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        self.time_steps = whole_steps(time_steps)

    def forward(self, x: Tensor) -> Tensor:
        return split_time(x, self.time_steps).mean(0)

    def extra_repr(self) -> str:
        return f"time_steps={self.time_steps}"

"""Process models: Intel's own, with recorders around them; chosen through the run configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.model.py.type import LavaPyType
from lava.proc.conv.models import PyConvModelFixed
from lava.proc.conv.utils import signed_clamp
from lava.proc.io.source import PySendModelFixed
from lava.proc.lif.models import PyLifResetModelBitAcc

from .convolution import exact_convolution
from .recorder import Plan, Recorder


class HeldInput(PySendModelFixed):
    """Sends each sample for T steps, or each of its T tensors in turn, and zeros before the first and after the last.

    The stock source would hold every step of every sample in memory and start again at its end.
    """

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.plan: Plan = proc_params["plan"]
        self.recorder = Recorder(self.plan)
        path: Path = proc_params["samples"]
        self.samples = np.load(path, mmap_mode="r")  # int8 [N, 1 or T, C, H, W]

    def run_spk(self) -> None:
        step = self.plan.step(self.time_step)
        if step is None:
            self.s_out.send(np.zeros(self.s_out.shape, np.int32))
            return
        number, moment = divmod(step, self.plan.time_steps)
        sample = self.samples[number][min(moment, self.samples.shape[1] - 1)].T.astype(np.int32)
        self.s_out.send(sample)
        self.recorder.events(sample != 0)
        self.recorder.end(step)


class RecordedNeurons(PyLifResetModelBitAcc):
    """Intel's bit-accurate neuron; its state is read before and after each step and never changed.

    Before the first sample and after the last it sends nothing: through a recurrent synapse it would reach a sample.
    Where the file ``biases`` exists, int16 [N, C, H, W], the host writes a bias for every neuron before each sample.
    """

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.plan: Plan = proc_params["plan"]
        self.recorder = Recorder(self.plan)
        path: Path = proc_params["biases"]
        self.biases = np.load(path, mmap_mode="r") if path.exists() else None

    def subthr_dynamics(self, activation_in: np.ndarray) -> None:
        before = self.u.astype(np.int64)
        super().subthr_dynamics(activation_in)
        product = before * (self.decay_unity - (self.du + self.ds_offset))
        unbounded = np.sign(product) * (np.abs(product) >> self.decay_shift)
        unbounded += activation_in.astype(np.int64) << self.act_shift
        self.wrapped = int(np.count_nonzero(unbounded != self.u))
        # v is clipped by now: it stands at its limit exactly where it reached or passed it.
        self.saturated = int(np.count_nonzero(np.abs(self.v) == self.max_uv_val - 1))

    def spiking_activation(self) -> np.ndarray:
        self.fired: np.ndarray = super().spiking_activation()
        return np.zeros_like(self.fired) if self.plan.step(self.time_step) is None else self.fired

    def run_spk(self) -> None:
        step = self.plan.step(self.time_step)
        if self.biases is not None and step is not None and step % self.plan.time_steps == 0:
            self.bias_mant = self.biases[step // self.plan.time_steps].T.copy()
        super().run_spk()
        if step is None:
            return
        self.recorder.count("wraps", self.wrapped)
        self.recorder.count("saturations", self.saturated)
        self.recorder.spikes(step, self.fired)
        self.recorder.events(self.fired)
        self.recorder.voltages(step, self.v)
        self.recorder.end(step)


class StockConvolution(PyConvModelFixed):
    """Intel's convolution with its geometry in 32 bits.

    Intel declares these as 8 bits: groups above 127 give zeros, and with NumPy 2 a side above 127 overflows.
    """

    kernel_size: np.ndarray = LavaPyType(np.ndarray, np.int32)
    stride: np.ndarray = LavaPyType(np.ndarray, np.int32)
    padding: np.ndarray = LavaPyType(np.ndarray, np.int32)
    dilation: np.ndarray = LavaPyType(np.ndarray, np.int32)
    groups: np.ndarray = LavaPyType(np.ndarray, np.int32)


class FastConvolution(StockConvolution):
    """The same integers from matrix products."""

    a_buf: np.ndarray
    convolve: Callable[[np.ndarray], np.ndarray] | None = None

    def run_spk(self) -> None:
        if self.convolve is None:
            self.convolve = self._prepared()
        self.a_out.send(self.a_buf)
        x = self.s_in.recv()
        if self.num_message_bits.item() == 0:
            x = x.astype(bool)
        self.a_buf = signed_clamp(self.convolve(x), bits=24).astype(np.int32)

    def _prepared(self) -> Callable[[np.ndarray], np.ndarray]:
        largest = max((1 << self.num_message_bits.item()) - 1, 1)
        stride, padding, dilation = (tuple(pair.tolist()) for pair in (self.stride, self.padding, self.dilation))
        return exact_convolution(self.weight, largest, stride, padding, dilation, self.groups.item())

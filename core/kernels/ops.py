"""LIF as torch operators: ``spikeport::lif``, its gradient and the gradient of its gradient.

Operators with fake implementations and autograd formulas, so that ``torch.compile(fullgraph=True)``,
``torch.export``, autocast and ``create_graph=True`` treat them as any of torch's own. The backward pass computes
the membrane again from x: x (and the initial state) is all that is saved.
"""

from typing import Any

import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.core.kernels import cpu, cuda
from spikeport.core.kernels.layout import Layout, with_dense_steps
from spikeport.core.kernels.parameters import SCHEMA, Setting, state_dtype

FORWARD, BACKWARD, DOUBLE_BACKWARD = 0, 1, 2
_LIBRARY = torch.library.Library("spikeport", "DEF")
_LIBRARY.define(f"lif(Tensor x, Tensor? state, {SCHEMA}, bool membrane) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"lif_backward(Tensor x, Tensor? state, Tensor? grad_spikes, Tensor? grad_membrane, {SCHEMA}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "lif_double_backward(Tensor x, Tensor? state, Tensor? grad_spikes, Tensor? grad_membrane, Tensor? grad2_x, "
    f"Tensor? grad2_state, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)"
)
N_SETTING = len(Setting._fields)


def lif(x: Tensor, state: Tensor | None, setting: Setting, membrane: bool) -> tuple[Tensor, Tensor]:
    """Spikes [T, N, ...] in x's dtype and, where ``membrane`` is set, the last membrane [N, ...] (else empty).

    Args:
        x: [N, ...] if ``setting.constant``, else [T, N, ...]; float64, float32, float16 or bfloat16.
        state: membrane before the first step, [N, ...] on x's device, float64 for float64 x, else float32.
    """
    result: tuple[Tensor, Tensor] = torch.ops.spikeport.lif(x, state, *setting, membrane)
    return result


def _lif(x: Tensor, state: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    setting, membrane = Setting(*arguments[:N_SETTING]), arguments[N_SETTING]
    x, layout = with_dense_steps(x, setting.constant)
    spikes, last = _lif_outputs(x, layout, setting, membrane)
    tensors = {"state": _arranged(state, layout, x), "spikes": spikes, "membrane": last if membrane else None}
    _run(FORWARD, x, setting, tensors)
    return spikes, last


def _lif_outputs(x: Tensor, layout: Layout, setting: Setting, membrane: bool) -> tuple[Tensor, Tensor]:
    spikes = layout.over(setting.steps).new(x.dtype, x.device)
    dtype = state_dtype(x.dtype)
    return spikes, layout.new(dtype, x.device) if membrane else x.new_empty(0, dtype=dtype)


def _fake_lif(x: Tensor, state: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    setting, membrane = Setting(*arguments[:N_SETTING]), arguments[N_SETTING]
    x, layout = with_dense_steps(x, setting.constant)
    return _lif_outputs(x, layout, setting, membrane)


def _lif_backward(
    x: Tensor, state: Tensor | None, grad_spikes: Tensor | None, grad_membrane: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    setting = Setting(*arguments)
    x, layout = with_dense_steps(x, setting.constant)
    grad_x, grad_state = _gradients(x, layout, state is not None, setting)
    tensors = {
        "state": _arranged(state, layout, x),
        "grad_spikes": _arranged_sequence(grad_spikes, layout, setting.steps, x),
        "grad_membrane": _arranged(grad_membrane, layout, x),
        "grad_x": grad_x,
        "grad_state": grad_state if state is not None else None,
    }
    _run(BACKWARD, x, setting, tensors)
    return grad_x, grad_state


def _gradients(x: Tensor, layout: Layout, stateful: bool, setting: Setting) -> tuple[Tensor, Tensor]:
    """Of x and of the state (empty without one)."""
    dtype = state_dtype(x.dtype)
    grad_x = (layout if setting.constant else layout.over(setting.steps)).new(x.dtype, x.device)
    return grad_x, layout.new(dtype, x.device) if stateful else x.new_empty(0, dtype=dtype)


def _fake_lif_backward(x: Tensor, state: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    setting = Setting(*arguments[2:])
    x, layout = with_dense_steps(x, setting.constant)
    return _gradients(x, layout, state is not None, setting)


def _lif_double_backward(
    x: Tensor,
    state: Tensor | None,
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad2_x: Tensor | None,
    grad2_state: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    setting = Setting(*arguments)
    x, layout = with_dense_steps(x, setting.constant)
    outputs = _double_gradients(x, layout, state is not None, setting)
    tensors = {
        "state": _arranged(state, layout, x),
        "grad_spikes": _arranged_sequence(grad_spikes, layout, setting.steps, x),
        "grad_membrane": _arranged(grad_membrane, layout, x),
        "grad2_state": _arranged(grad2_state, layout, x),
        "grad_x": outputs[0],
        "grad_state": outputs[1] if state is not None else None,
        "grad2_spikes": outputs[2],
        "grad2_membrane": outputs[3],
    }
    if setting.constant:
        tensors["grad2_x"] = None if grad2_x is None else layout.arrange(grad2_x, x.dtype)
    else:
        tensors["grad2_x"] = _arranged_sequence(grad2_x, layout, setting.steps, x)
    _run(DOUBLE_BACKWARD, x, setting, tensors)
    return outputs


def _double_gradients(
    x: Tensor, layout: Layout, stateful: bool, setting: Setting
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of x, the state, the gradient of the spikes and the gradient of the membrane."""
    return (
        *_gradients(x, layout, stateful, setting),
        layout.over(setting.steps).new(x.dtype, x.device),
        layout.new(state_dtype(x.dtype), x.device),
    )


def _fake_lif_double_backward(
    x: Tensor, state: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    setting = Setting(*arguments[4:])
    x, layout = with_dense_steps(x, setting.constant)
    return _double_gradients(x, layout, state is not None, setting)


def _run(code: int, x: Tensor, setting: Setting, tensors: dict[str, Tensor | None]) -> None:
    if x.numel():
        (cuda if x.is_cuda else cpu).lif(code, x, setting, **tensors)


def _arranged(tensor: Tensor | None, layout: Layout, x: Tensor) -> Tensor | None:
    return None if tensor is None else layout.arrange(tensor, state_dtype(x.dtype))


def _arranged_sequence(tensor: Tensor | None, layout: Layout, steps: int, x: Tensor) -> Tensor | None:
    return None if tensor is None else layout.over(steps).arrange(tensor, x.dtype)


def _save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, state, *arguments = inputs
    ctx.save_for_backward(x, state)
    ctx.setting = Setting(*arguments[:N_SETTING])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None) -> tuple[Tensor | None, ...]:
    x, state = ctx.saved_tensors
    nothing = (None,) * (N_SETTING + 1)
    if grad_spikes is None and grad_membrane is None:
        return None, None, *nothing
    if grad_membrane is not None and grad_membrane.numel() == 0:
        grad_membrane = None
    grad_x, grad_state = torch.ops.spikeport.lif_backward(x, state, grad_spikes, grad_membrane, *ctx.setting)
    return grad_x, None if state is None else grad_state, *nothing


def _save_for_double_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.setting = Setting(*inputs[4:])
    ctx.set_materialize_grads(False)


def _double_gradient(ctx: Any, grad2_x: Tensor | None, grad2_state: Tensor | None) -> tuple[Tensor | None, ...]:
    given = ctx.saved_tensors
    if grad2_state is not None and grad2_state.numel() == 0:
        grad2_state = None
    gradients = torch.ops.spikeport.lif_double_backward(*given, grad2_x, grad2_state, *ctx.setting)
    wanted = (None if tensor is None else gradient for tensor, gradient in zip(given, gradients, strict=True))
    return *wanted, *(None,) * N_SETTING


def refuse_third_gradient(ctx: Any, *grads: Tensor) -> None:
    raise SpikeportError(
        "LIF kernels have a first and a second derivative, not a third; set SPIKEPORT_KERNELS=reference for more"
    )


for _name, _kernel, _fake in (
    ("lif", _lif, _fake_lif),
    ("lif_backward", _lif_backward, _fake_lif_backward),
    ("lif_double_backward", _lif_double_backward, _fake_lif_double_backward),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _kernel, "CUDA")
    torch.library.register_fake(f"spikeport::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("spikeport::lif", _gradient, setup_context=_save_for_gradient, lib=_LIBRARY)
torch.library.register_autograd(
    "spikeport::lif_backward", _double_gradient, setup_context=_save_for_double_gradient, lib=_LIBRARY
)
torch.library.register_autograd("spikeport::lif_double_backward", refuse_third_gradient, lib=_LIBRARY)

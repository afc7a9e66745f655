"""What training minimises, beside cross-entropy.

The loss "temporal" is cross-entropy at every step instead of that of the mean, which only asks that the steps add up.
Source: S. Deng et al., Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting, ICLR 2022; its
regularising term is left out.

Every term is a mean over the whole batch; where several processes share it, each has the sum over its own part.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, relu

from spikeport.core.distributed import summed


def gradient_aware(loss: Tensor, weights: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """The paper's term against vanishing gradients (eq. 3.3, without lambda): sum_l (1 - |g_l| / (|g_l| + eps)).

    Args:
        loss: the cross-entropy; g_l is its gradient by weight tensor l, |g_l| the Euclidean norm.
        weights: of the layers l.

    Returns:
        a scalar whose own gradient is exact: the second derivative goes through the neurons' surrogates.
    """
    gradients = torch.autograd.grad(loss, list(weights), create_graph=True)
    whole = summed(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
    # 1 - n / (n + eps) is eps / (n + eps), which does not cancel where n is far above eps.
    return torch.stack([eps / (torch.linalg.vector_norm(g) + eps) for g in whole]).sum()


def grad_cam(logits: Tensor, maps: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM maps [N, H, W]: where the network sees a class, relu(sum_k a_k A_k).

    a_k is the spatial mean of the class logit's gradient by the map A_k. Over time the maps are averaged; the
    gradients are summed, for the logit is already a mean over T.
    Source: R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks, ICCV 2017, eq. 1 and 2.

    Args:
        logits: [N, K].
        maps: the features A that global pooling reads, [T*N, C, H, W], time-major (T = 1 for a CNN).
        classes: one per sample, int64 [N].
    """
    chosen = logits.gather(1, classes.unsqueeze(1)).sum()
    (gradient,) = torch.autograd.grad(chosen, maps, create_graph=True)
    steps = (maps.shape[0] // max(1, logits.shape[0]), logits.shape[0])
    importance = single(gradient).unflatten(0, steps).sum(0).mean((-2, -1), keepdim=True)
    return relu((importance * single(maps).unflatten(0, steps).mean(0)).sum(1))


def grad_cam_overlap(logits: Tensor, labels: Tensor, maps: Tensor, eps: float = 1e-8) -> Tensor:
    """How much of what speaks for the true class also speaks for its strongest rival, 0..1 per sample [N].

    The paper names a Grad-CAM-aware term that encourages discriminative activations and does not define it. This
    is the attention separability of L. Wang et al., Sharpen Focus, ICCV 2019, without its mask:
    2 sum min(M_true, M_rival) / sum (M_true + M_rival), M being Grad-CAM maps: 1 where they are equal, 0 where they
    do not meet. Arguments as for ``grad_cam``.
    """
    rivals = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1)
    true, rival = (grad_cam(logits, maps, classes).flatten(1) for classes in (labels, rivals))
    return 2 * torch.minimum(true, rival).sum(1) / ((true + rival).sum(1) + eps)


def rate_penalty(rates: Mapping[str, Tensor], goal: float) -> Tensor:
    """Mean over layers of (rate - goal)^2; a rate is spikes per neuron, step and sample."""
    return (torch.stack(list(rates.values())) - goal).square().mean()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature^2 KL(teacher || student), both softened by the temperature, per sample [N].

    Source: G. Hinton, O. Vinyals, J. Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    soft = (logits / temperature).log_softmax(1)
    target = (teacher / temperature).log_softmax(1)
    return temperature**2 * kl_div(soft, target, reduction="none", log_target=True).sum(1)


def single(tensor: Tensor) -> Tensor:
    """In float32 at least: half precision does for convolutions, not for sums."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

"""The loss that the settings ask for, put together of its terms."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spikeport.core.config import TrainConfig
from spikeport.core.distributed import processes, summed
from spikeport.core.errors import SpikeportError
from spikeport.core.hooks import watch
from spikeport.core.losses import distillation, grad_cam_overlap, gradient_aware, rate_penalty, single
from spikeport.core.neurons import TimeMean
from spikeport.core.rates import spiking_layers
from spikeport.core.runs import DataInfo, load_run
from spikeport.core.second_derivatives import SecondDerivatives

#: uint8 images [N, C, H, W] to class logits [N, K].
Teacher = Callable[[Tensor], Tensor]


class Objective:
    """The loss of a batch; it watches the model, for some terms ask what happens inside.

    Raises:
        SpikeportError: a term that the model has no place for.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, teacher: Teacher | None = None) -> None:
        self.config, self.teacher = config, teacher
        self.weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        self.rates: dict[str, Tensor] = {}
        self.maps: list[Tensor] = []
        if config.rate_weight:
            self._watch_rates(model)
        if config.loss == "grad-cam":
            self._watch_maps(model)
        self.steps: list[Tensor] = []
        if config.loss == "temporal":
            self._watch_steps(model)

    def _watch_rates(self, model: nn.Module) -> None:
        def see(name: str, spikes: Tensor) -> None:
            self.rates[name] = single(spikes).sum() / max(1, spikes.numel())

        if not watch(spiking_layers(model), see):
            raise SpikeportError("rate_weight asks for firing rates, and a CNN has none; take --kind snn")

    def _watch_maps(self, model: nn.Module) -> None:
        pools = [module for module in model.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
        if not pools:
            raise SpikeportError("loss 'grad-cam' reads the maps before the global pooling; this model has none")

        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.maps[:] = inputs

        pools[-1].register_forward_pre_hook(see)

    def _watch_steps(self, model: nn.Module) -> None:
        means = [module for module in model.modules() if isinstance(module, TimeMean)]
        if not means:
            raise SpikeportError(
                "loss 'temporal' asks for a prediction at every step, and a CNN has one; take --kind snn"
            )

        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.steps[:] = inputs

        means[-1].register_forward_pre_hook(see)

    def forward(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``network(x)`` in float32, differentiable as often as the loss asks for."""
        with SecondDerivatives() if self.config.loss == "gradient-aware" else nullcontext():
            return network(x).float()

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor, total: int, scale: float = 1.0) -> Tensor:
        """The loss of this process's part of a batch; the mean over processes is that of the batch.

        Args:
            logits: time-averaged, float32 [N, K], fresh from ``forward``.
            images: uint8 [N, C, H, W], for the teacher.
            total: the samples of the batch in all processes.
            scale: what the loss is about to be multiplied by, to keep float16 gradients from vanishing.
        """
        config = self.config
        scores = single(self.steps[0]) if config.loss == "temporal" else logits  # [T*N, K], time-major, or [N, K]
        steps = len(scores) // max(1, len(logits))
        smoothing = config.label_smoothing
        task = cross_entropy(scores, labels.repeat(steps), reduction="sum", label_smoothing=smoothing) / steps
        per_sample = task
        if self.teacher is not None:
            answer = self.teacher(images).repeat(steps, 1)
            learned = distillation(scores, answer, config.temperature).sum() / steps
            per_sample = torch.lerp(task, learned, config.distill_weight)
        if config.loss == "grad-cam":
            per_sample = per_sample + config.loss_weight * grad_cam_overlap(logits, labels, self.maps[0]).sum()
        loss = per_sample * (processes() / total)
        if config.loss == "gradient-aware":
            term = gradient_aware(task * (scale / total), self.weights, config.gradient_eps * scale)
            loss = loss + config.loss_weight * term
        if config.rate_weight:
            part = len(labels) / total
            rates = {name: summed(rate * part) for name, rate in self.rates.items()}
            loss = loss + config.rate_weight * rate_penalty(rates, config.rate_goal)
        return loss


def teacher_of(config: TrainConfig, info: DataInfo, device: torch.device) -> Teacher | None:
    """The network to learn from, frozen. Raises SpikeportError where it has seen other images or other classes."""
    if config.teacher is None:
        return None
    run = load_run(Path(config.teacher))
    for name in ("image_shape", "class_names"):
        found, wanted = getattr(run.data, name), getattr(info, name)
        if found != wanted:
            raise SpikeportError(
                f"{run.path}: the teacher's {name} are {found}, the data set's {wanted}; train another"
            )
    network = run.model().to(device).requires_grad_(False)

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = network(run.data.normalise(images)).float()
        return logits

    return answer

"""Judging a network on labelled images."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spikeport.core.data import ImageData
from spikeport.core.distributed import gathered, share

EVALUATION_BATCH = 128
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, top-1 accuracy, macro F1 and the predicted class of every image, int64 [N]."""

    loss: float
    accuracy: float
    macro_f1: float
    predictions: Tensor


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def warn_where_slow(device: torch.device, precision: str) -> None:
    """Warns where torch's fast convolutions do not run in ``precision`` on this processor.

    The others take six times as long as in float32 (CNN-SqueezeNet-P, bfloat16, AVX2).
    """
    if device.type != "cpu" or precision not in AUTOCAST:
        return
    # A torch without oneDNN has neither these operators nor those convolutions.
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: False)
    if not supported():
        warnings.warn(
            f"this CPU has no fast convolutions in {precision}: they take several times as long; use --precision fp32",
            RuntimeWarning,
            stacklevel=3,
        )


def evaluate(model: nn.Module, data: ImageData, images: Tensor, labels: Tensor, precision: str = "fp32") -> Evaluation:
    """Judges ``model`` on uint8 images [N, C, H, W], in evaluation mode; its mode is restored."""
    from sklearn.metrics import f1_score

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    outputs = [torch.zeros(0, len(data.class_names))]
    with torch.no_grad(), autocast(device, precision):
        for batch in images[share(len(images))].split(EVALUATION_BATCH):
            x = data.normalise(batch.to(device)).contiguous(memory_format=torch.channels_last)
            outputs.append(model(x).float().cpu())
    model.train(training)
    logits = gathered(torch.cat(outputs), len(images))
    predictions = logits.argmax(1)
    return Evaluation(
        loss=float(cross_entropy(logits, labels)),
        accuracy=float((predictions == labels).double().mean()),
        macro_f1=float(f1_score(labels, predictions, average="macro")),
        predictions=predictions,
    )

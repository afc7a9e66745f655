"""A network built and trained with SpikingJelly, taken to Loihi as it is.

    python examples/spikingjelly_vgg.py --epochs 8 --integers 1 --out exported/spikingjelly

SpikingJelly's own exporter refuses BatchNorm and max-pooling. Here the network keeps its layers, its neurons and its
weights; the certificate compares every spike with SpikingJelly's own forward pass. With --integers it is trained on as
Loihi will run it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from spikeport import compile, report, simulate, to_nir
from spikeport.core.data import load_dataset
from spikeport.targets import prepare_qat

TIME_STEPS = 4


class SpikingVGG(nn.Module):
    """One step of time: [N, 1, 16, 16] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels_in: int, channels_out: int) -> list[nn.Module]:
            return [
                layer.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
                layer.BatchNorm2d(channels_out),
                neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True),
            ]

        self.features = nn.Sequential(
            *block(1, 16), *block(16, 16), layer.MaxPool2d(2), *block(16, 32), layer.MaxPool2d(2), layer.Flatten()
        )
        self.hidden = nn.Sequential(layer.Linear(32 * 16, 64), neuron.IFNode(surrogate_function=surrogate.ATan()))
        self.classifier = layer.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(self.features(x)))
        return logits


def over_time(model: nn.Module, x: Tensor) -> Tensor:
    """Mean class current over T steps of a constant input."""
    functional.reset_net(model)
    return torch.stack([model(x) for _ in range(TIME_STEPS)]).mean(0)


def train(forward: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(forward(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")


def accuracy(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (forward(x).argmax(1) == y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--integers", type=int, default=0, help="epochs in the chip's integers")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("exported/spikingjelly"))
    args = parser.parse_args()

    torch.manual_seed(0)
    data = load_dataset("digits")
    x, x_test = data.normalise(data.train_images), data.normalise(data.test_images)
    model = SpikingVGG()
    in_float = partial(over_time, model)
    train(in_float, model.train(), x, data.train_labels, args.epochs, 2e-3)
    model.eval()
    print(f"SpikingJelly: test accuracy {accuracy(in_float, x_test, data.test_labels):.4f}")

    functional.reset_net(model)
    if args.integers:
        chip = prepare_qat(model, x, TIME_STEPS)  # the samples that it is compiled with
        train(chip, chip, x, data.train_labels, args.integers, 2e-4)
        print(f"in integers: test accuracy {accuracy(chip, x_test, data.test_labels):.4f}")

    file = args.out / "nir/model.nir"
    certificate = to_nir(model, file, x_test[: args.samples].numpy(), overwrite=True, time_steps=TIME_STEPS)
    for witness in certificate.witnesses:
        print(f"  {witness.reader}: {witness.status}, {witness.differing_spikes} differing spikes {witness.note}")

    program = args.out / "loihi/program.npz"
    compile(file, program, calibration=x.numpy(), overwrite=True)
    for engine, count in (("fixed", len(x_test)), ("lava", args.samples)):
        labels = data.test_labels[:count].numpy()
        record = simulate(program, engine=engine, x=x_test[:count].numpy(), labels=labels, overwrite=True)
        print(f"Loihi, engine {engine}: accuracy {record.accuracy:.4f} on {count} images")

    written = report(args.out, network=model, x=x_test, overwrite=True)
    print(f"report: {written.page}")


if __name__ == "__main__":
    main()

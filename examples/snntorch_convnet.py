"""A network built and trained with snnTorch, taken to Loihi as it is.

    python examples/snntorch_convnet.py --epochs 8 --out exported/snntorch

snnTorch's exporter fails on convolutions with a scalar beta, and does not say how neurons reset. Here the reset must be
to zero (snnTorch's default, by subtraction, has no exact form on Loihi and is refused); the certificate compares every
spike with snnTorch's own forward pass.
"""

import argparse
from pathlib import Path

import snntorch
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from spikeport import compile, report, simulate, to_nir
from spikeport.core.data import load_dataset

TIME_STEPS = 5


class ConvNet(nn.Module):
    """One step of time: [N, 1, 16, 16] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()

        def leaky() -> nn.Module:
            return snntorch.Leaky(
                beta=0.8, spike_grad=surrogate.atan(), init_hidden=True, reset_mechanism="zero", threshold=1.0
            )

        self.conv1, self.lif1 = nn.Conv2d(1, 16, 3, padding=1), leaky()
        self.conv2, self.lif2 = nn.Conv2d(16, 32, 3, padding=1), leaky()
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.lif1(self.conv1(x)))
        x = self.pool(self.lif2(self.conv2(x)))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def over_time(model: nn.Module, x: Tensor) -> Tensor:
    """Mean class current over T steps of a constant input."""
    utils.reset(model)
    return torch.stack([model(x) for _ in range(TIME_STEPS)]).mean(0)


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(over_time(model, x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("exported/snntorch"))
    args = parser.parse_args()

    torch.manual_seed(0)
    data = load_dataset("digits")
    x, x_test = data.normalise(data.train_images), data.normalise(data.test_images)
    model = ConvNet()
    train(model, x, data.train_labels, args.epochs)
    with torch.no_grad():
        accuracy = (over_time(model, x_test).argmax(1) == data.test_labels).float().mean()
    print(f"snnTorch: test accuracy {accuracy:.4f}")

    utils.reset(model)
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

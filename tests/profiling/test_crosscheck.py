"""Other tools' figures, taken from the tools themselves, and no operation of them unexplained."""

import builtins
import io

import progress
import pytest
import torch
from ptflops import get_model_complexity_info
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.core.kernels import cpu
from spikeport.core.models import ModelSpec, Twin
from spikeport.profiling.counting import count_operations
from spikeport.profiling.crosscheck import cross_check
from spikeport.profiling.energy import paper_count


def network(name: str, kind: str, width: float) -> nn.Module:
    """An untrained network whose layers fire at rates of their own."""
    model = ModelSpec(name, Twin(kind=kind, time_steps=3), width=width).build().eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 2.0, generator=generator)
    return model


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["squeezenet-p", "shufflenetv2", "mixnet"])
@pytest.mark.parametrize("kind", ["snn", "cnn"])
def test_no_operation_of_another_tool_is_unexplained(name, kind, compiled, monkeypatch):
    """Neither with the compiled neurons, of which a counter of torch's operators sees nothing, nor without."""
    if not compiled:
        monkeypatch.setattr(cpu, "library", lambda: None)
    checks = cross_check(network(name, kind, 0.125), images(16), kind)
    assert {check.unexplained for check in checks} == {0}
    tools = {check.tool.split()[0] for check in checks}
    assert tools == {"NeuroBench", "SpikingJelly", "syops" if kind == "snn" else "ptflops"}
    counted = {(check.tool.split()[0], check.quantity): check.theirs for check in checks}
    if kind == "snn":  # our neurons are of no type these tools know: they must not count nothing
        assert min(counted["syops", "ACs"], counted["NeuroBench", "Effective_ACs"]) > 0
        neurons = next(c for c in checks if c.quantity == "ACs").causes["neuron updates"]
        assert neurons > 0


def test_a_norm_that_does_not_fold_is_accounted_for():
    torch.manual_seed(0)
    first = LIF(time_steps=3, constant_input=True, v_threshold=0.1)
    layers = (nn.Conv2d(3, 4, 3), first, nn.BatchNorm2d(4), LIF(time_steps=3, v_threshold=0.1), nn.Flatten())
    net = nn.Sequential(*layers, nn.Linear(144, 2), TimeMean(3)).eval()
    x = images(8)
    assert count_operations(net, x).layers["2"].acs.sum() > 0
    checks = cross_check(net, x, "snn")
    assert [check.unexplained for check in checks] == pytest.approx([0] * len(checks), abs=1e-6)


def test_an_operation_too_many_would_be_unexplained():
    check = cross_check(network("squeezenet-p", "snn", 0.0625), images(16), "snn")[0]
    wrong = type(check)(**check.__dict__ | {"ours": check.ours + 1})
    assert wrong.unexplained == pytest.approx(-1)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, bias=False)
        self.fire_a, self.fire_b = (LIF(time_steps=3, constant_input=True, v_threshold=0.1) for _ in range(2))
        self.fire_c, self.head, self.mean = LIF(time_steps=3, v_threshold=0.1), nn.Linear(16, 2), TimeMean(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.fire_a(self.a(x)) + self.fire_b(self.b(x))
        return self.mean(self.head(self.fire_c(self.c(spikes)).flatten(1)))


def test_sums_of_spikes_that_another_tool_takes_for_one_operation_are_accounted_for():
    torch.manual_seed(0)
    checks = cross_check(Branches().eval(), images(6), "snn")
    assert {check.unexplained for check in checks} == {0}
    cause = "a sum of spikes is one operation; ours: one for each spike"
    assert min(check.causes.get(cause, 0) for check in checks) < 0


def test_zero_weights_and_sums_of_spikes_are_accounted_for():
    model = network("mnasnet", "snn", 0.25)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[:1] = 0
    checks = cross_check(model, images(16), "snn")
    assert {check.unexplained for check in checks} == {0}
    skipped = [check.causes.get("zero weights are skipped", 0) for check in checks]
    assert min(skipped) < 0


def test_ptflops_gives_the_papers_cnn():
    """Convolutions, BatchNorm and the average pooling, each once: 54.755 M and 0.2519 mJ."""
    model = ModelSpec("squeezenet", Twin(kind="cnn")).build().eval()
    ours = paper_count(count_operations(model, torch.randn(1, 3, 32, 32)))
    theirs, _ = get_model_complexity_info(
        model,
        (3, 32, 32),
        print_per_layer_stat=False,
        as_strings=False,
        backend="pytorch",
        ignore_modules=[nn.ReLU, nn.MaxPool2d],
        backend_specific_config={"count_functional": False},
    )
    assert theirs == ours.macs == 54_754_624
    assert ours.energy_nj / 1e6 == pytest.approx(0.2519, abs=5e-5)  # mJ


def test_syops_first_imported_under_a_stderr_that_is_closed_by_now(monkeypatch):
    """As in a notebook's cell or a captured call: the progress bar keeps the stream it met first."""
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(progress.Infinite, "file", gone)
    assert cross_check(network("squeezenet-p", "snn", 0.0625), images(16), "snn")
    assert progress.Infinite.file is gone  # other users of the bar keep theirs


def test_a_missing_tool_is_named_with_its_remedy(monkeypatch):
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("neurobench"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="neurobench")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SpikeportError, match="the cross-check needs neurobench: `pip install"):
        cross_check(network("squeezenet-p", "snn", 0.0625), images(16), "snn")

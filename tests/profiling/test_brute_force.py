"""Counts are equal to counting by the definition, on random layers under every kind of input."""

from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.core.models import ModelSpec, Twin
from spikeport.core.neurons import HoldTime
from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import Accesses, ModelCounts

#: Times max_examples of the hypothesis profile: 500 layers in `make test`, 5000 in `make test-long`.
LAYERS_PER_EXAMPLE = 20
INPUTS = ("constant", "spikes", "sums", "analog", "mixed")


def direct_counts(module: nn.Module, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """What each of M images [M, C, H, W] (or [M, F]) does in one pass of ``module``; int64 [M] each.

    Keys: ``events`` (every input times the weights it meets), ``active`` (weights that meet a non-zero input),
    ``dense`` (weights on the map), ``outputs`` (results), ``bias`` (biases added).
    """
    found = {name: np.zeros(len(x), np.int64) for name in ("events", "active", "dense", "outputs", "bias")}
    if isinstance(module, nn.Linear):
        for _ in range(module.out_features):
            for i in range(module.in_features):
                _meet(found, x[:, i : i + 1], 1)
            _finish(found, 1, module.bias is not None)
        return found
    kernel, stride, padding, dilation = (
        np.broadcast_to(value, 2).tolist()
        for value in (module.kernel_size, module.stride, _padding(module), module.dilation)
    )
    groups = module.groups if isinstance(module, nn.Conv2d) else x.shape[1]
    out = module.out_channels if isinstance(module, nn.Conv2d) else x.shape[1]
    each = x.shape[1] // groups
    for top, left in np.ndindex(*y.shape[2:]):
        for i, j in np.ndindex(*kernel):
            row = top * stride[0] + i * dilation[0] - padding[0]
            column = left * stride[1] + j * dilation[1] - padding[1]
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                for group in range(groups):
                    _meet(found, x[:, group * each : (group + 1) * each, row, column], out // groups)
        _finish(found, out, getattr(module, "bias", None) is not None)
    return found


def _meet(found: dict[str, np.ndarray], values: np.ndarray, weights: int) -> None:
    """Each of the values [M, k] meets so many weights."""
    found["events"] += (values.sum(1) * weights).astype(np.int64)
    found["active"] += (values != 0).sum(1) * weights
    found["dense"] += values.shape[1] * weights


def _finish(found: dict[str, np.ndarray], outputs: int, bias: bool) -> None:
    found["outputs"] += outputs
    found["bias"] += outputs * bias


def _padding(module: nn.Module) -> object:
    if module.padding == "same":
        return [d * (k - 1) // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    return 0 if module.padding == "valid" else module.padding


class Probe(nn.Module):
    """Neurons, one layer that meets the chosen kind of input, neurons behind it."""

    def __init__(self, layer: nn.Module, norm: nn.Module, inputs: str, steps: int):
        super().__init__()
        self.inputs, self.steps = inputs, steps
        self.a = LIF(tau=1.0, v_threshold=0.6, time_steps=steps, constant_input=True)
        self.b = LIF(tau=2.0, v_threshold=0.4, time_steps=steps, constant_input=True)
        self.layer, self.norm = layer, norm
        self.c = LIF(tau=2.0, v_threshold=0.5, time_steps=steps, constant_input=inputs == "constant")
        self.end = TimeMean(steps)

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs != "constant":
            spikes, others = self.a(x), self.b(x)
            if self.inputs == "analog":
                spikes = 0.37 * spikes
            elif self.inputs == "sums":
                spikes = spikes + others
            elif self.inputs == "mixed":  # the first image meets it with analog values, the others with spikes
                factors = torch.ones(self.steps, len(x), *[1] * (x.dim() - 1))
                factors[:, 0] = 0.5
                spikes = spikes * factors.flatten(0, 1)
            x = spikes
        y: Tensor = self.end(self.c(self.norm(self.layer(x))))
        return y


@dataclass
class Seen:
    """What a layer met, step by step, and gave."""

    x: Tensor
    y: Tensor


def random_probe(rng: np.random.Generator) -> tuple[Probe, Tensor]:
    """A random layer in a probe, and samples for it."""
    pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
    inputs, steps, channels = pick(*INPUTS), int(rng.integers(1, 4)), int(pick(2, 4, 6))
    size = tuple(int(n) for n in rng.integers(4, 7, 2))
    kind = pick("conv", "conv", "conv", "linear", "maxpool")
    if kind == "maxpool" and inputs not in ("spikes", "analog"):
        kind = "conv"
    norm: nn.Module = nn.Identity()
    if kind == "linear":
        layer: nn.Module = nn.Linear(channels, int(rng.integers(1, 6)), bias=bool(rng.integers(2)))
        shape: tuple[int, ...] = (channels,)
    else:
        shape = (channels, *size)
        kernel = tuple(int(k) for k in rng.integers(1, 4, 2))
        stride = tuple(int(s) for s in rng.integers(1, 3, 2))
        if kind == "maxpool":
            padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
            layer = nn.MaxPool2d(kernel, stride, padding)
        else:
            same = bool(rng.integers(4) == 0) and all(k % 2 for k in kernel)
            layer = nn.Conv2d(
                channels, int(pick(2, 4)) * 2, kernel, 1 if same else stride,
                "same" if same else tuple(int(p) for p in rng.integers(0, 3, 2)),
                1 if max(kernel) == 3 and min(size) < 5 else int(rng.integers(1, 3)),
                int(pick(1, 2)), bool(rng.integers(2)),
            )  # fmt: skip
            if rng.integers(2):
                norm = nn.BatchNorm2d(layer.out_channels)  # type: ignore[assignment]
    x = torch.from_numpy(rng.random((int(rng.integers(1, 4)), *shape)).astype(np.float32))
    return Probe(layer, norm, inputs, steps), x


def run(probe: Probe, x: Tensor) -> tuple[ModelCounts, Seen]:
    seen: list[Seen] = []
    handle = probe.layer.register_forward_hook(lambda m, args, y: seen.append(Seen(args[0], y)))
    counts = count_operations(probe, x)
    handle.remove()
    return counts, seen[0]


@given(st.integers(0, 2**31))
def test_every_count_of_a_random_layer_equals_counting_one_by_one(seed):
    rng = np.random.default_rng(seed)
    for _ in range(LAYERS_PER_EXAMPLE):
        probe, x = random_probe(rng)
        counts, seen = run(probe, x)
        check_layer(probe, counts, seen, len(x))


def check_layer(probe: Probe, counts: ModelCounts, seen: Seen, samples: int) -> None:
    found, neurons = counts.layers["layer"], counts.layers["c"]
    inputs = seen.x.numpy()
    direct = direct_counts(probe.layer, inputs, seen.y.numpy())
    # Time-major: rows of the direct count are [passes, N].
    table = {name: values.reshape(-1, samples).T for name, values in direct.items()}
    per_image = inputs.reshape(len(inputs), -1)
    behind_neurons = probe.inputs != "constant"
    spikes = (per_image >= 0).all(1) & ((per_image % 1 == 0).all(1) if behind_neurons else (per_image <= 1).all(1))
    if not behind_neurons:
        spikes &= (per_image % 1 == 0).all(1)
    spikes = spikes.reshape(-1, samples).T
    passes = 1 if probe.inputs == "constant" else probe.steps
    pooling = isinstance(probe.layer, nn.MaxPool2d)
    if pooling and not spikes.all():
        assert not found.acs.size
        assert not found.macs.size
        return
    if pooling:  # its spikes go on to the neurons behind it as they are
        table["events"] += seen.y.numpy().reshape(len(inputs), -1).sum(1).astype(int).reshape(-1, samples).T
    assert found.passes == passes
    assert found.acs.shape == (samples, passes)
    assert (found.acs == table["events"] * spikes).all()
    assert (found.macs == table["dense"] * ~spikes).all()
    assert (found.macs_effective == table["active"] * ~spikes).all()
    assert (table["dense"] == found.dense).all()
    bias = isinstance(probe.norm, nn.BatchNorm2d) or getattr(probe.layer, "bias", None) is not None
    assert found.bias_adds == found.outputs * passes * bias
    if not isinstance(probe.norm, nn.BatchNorm2d):
        assert found.bias_adds == table["bias"][0].sum()
    assert found.parameters == sum(p.numel() for p in probe.layer.parameters())
    assert found.bytes == 4 * found.parameters
    updates = int(np.prod(seen.y.shape[1:])) * probe.steps
    assert neurons.neuron_updates == updates
    # The loops of ``Accesses``, added up from the direct counts.
    arrived = per_image.sum(1, dtype=np.float64).reshape(-1, samples).T
    written = table["outputs"] * ~spikes
    events = (table["events"] * spikes).sum() / samples
    macs = (table["dense"] * ~spikes).sum() / samples
    updates_here = found.outputs * probe.steps if pooling else 0  # of the OR neurons
    expected = Accesses(
        inputs_read=(arrived * spikes).sum() / samples + macs,
        weights_read=events + macs,
        biases_read=found.bias_adds,
        states_read=events + updates_here,
        states_written=events + updates_here,
        outputs_written=written.sum() / samples + (float(seen.y.sum()) / samples if pooling else 0),
    )
    assert asdict(found.work().accesses) == pytest.approx(asdict(expected), rel=1e-12)
    assert neurons.work().accesses.states_read == neurons.work().accesses.states_written == updates
    assert neurons.work().accesses.outputs_written == pytest.approx(neurons.spikes.sum() / samples)
    assert int(neurons.neuron_spikes.sum()) == int(neurons.spikes.sum())


def test_a_sum_of_spikes_is_so_many_additions_and_an_analog_image_is_not():
    layer = nn.Linear(3, 2, bias=False)
    probe = Probe(layer, nn.Identity(), "sums", 1)
    counts, seen = run(probe, torch.tensor([[0.9, 0.9, 0.0], [0.7, 0.0, 0.0]]))
    assert seen.x.tolist() == [[2, 2, 0], [1, 0, 0]]
    assert counts.layers["layer"].acs[:, 0].tolist() == [8, 2]
    assert counts.layers["layer"].spikes_in[:, 0].tolist() == [4, 1]
    assert not counts.layers["layer"].analog


def test_whole_numbers_before_any_neuron_are_analog():
    model = nn.Sequential(nn.Linear(2, 3), LIF(time_steps=2, constant_input=True))
    counts = count_operations(model, torch.tensor([[2.0, 1.0]])).layers["0"]
    assert (counts.acs.sum(), counts.macs.sum()) == (0, 6)


def test_batch_norm_costs_nothing_where_it_folds_and_a_weight_per_element_elsewhere():
    torch.manual_seed(0)
    conv, neurons = nn.Conv2d(2, 4, 1, bias=False), LIF(time_steps=3, constant_input=True, v_threshold=0.1)
    rest = nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.BatchNorm2d(4)
    counts = count_operations(nn.Sequential(conv, nn.BatchNorm2d(4), neurons, *rest), torch.rand(2, 2, 4, 4)).layers
    assert (counts["1"].folds_into, counts["1"].macs.size) == (("0",), 0)
    assert counts["0"].bias_adds == 4 * 16

    spikes, analog = counts["3"], counts["5"]
    assert (spikes.folds_into, analog.folds_into) == ((), ())
    assert spikes.acs.tolist() == counts["2"].spikes.tolist()
    assert 0 < spikes.acs.sum() < 4 * 16 * 3 * 2
    assert (spikes.dense, spikes.macs.sum(), spikes.bias_adds) == (4 * 16, 0, 4 * 16 * 3)
    assert (analog.acs.sum(), analog.macs.tolist(), analog.bias_adds) == (0, [[16, 16, 16]] * 2, 16 * 3)


def test_batch_norm_behind_a_concatenation_of_convolutions_folds_into_all_of_them():
    model = ModelSpec("mixnet", Twin(time_steps=2), width=0.125).build().eval()
    counts = count_operations(model, torch.rand(1, 3, 16, 16)).layers
    folded = [c.folds_into for c in counts.values() if c.kind == "BatchNorm2d"]
    assert max(len(names) for names in folded) == 4
    assert all(folded)


def test_batch_norm_behind_anything_else_of_their_size_does_not_fold():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 1, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(torch.cat([self.a(x), self.b(x)], 1).relu())
            return y

    torch.manual_seed(0)
    norm = count_operations(Net(), torch.randn(2, 2, 5, 5)).layers["norm"]
    assert norm.folds_into == ()
    assert norm.macs.tolist() == [[100]] * 2


def test_a_layer_that_runs_twice_is_counted_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(self.conv(x))
            return y

    once = count_operations(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)), torch.rand(1, 2, 4, 4)).layers["0"]
    twice = count_operations(Twice(), torch.rand(1, 2, 4, 4)).layers["conv"]
    assert twice.macs.sum() == 2 * once.macs.sum()
    assert twice.bias_adds == 2 * once.bias_adds


class Shared(nn.Module):
    """Modules that run on maps of two sizes, or a module of its own for each run."""

    def __init__(self, shared: bool):
        super().__init__()
        pick = lambda make: [make()] * 2 if shared else [make(), make()]  # noqa: E731
        self.first = LIF(v_threshold=0.3, time_steps=3, constant_input=True)
        self.convs = nn.ModuleList(pick(lambda: nn.Conv2d(2, 2, 3, padding=1)))
        self.pools = nn.ModuleList(pick(lambda: nn.MaxPool2d(2)))
        self.lifs = nn.ModuleList(pick(lambda: LIF(v_threshold=0.1, time_steps=3)))
        self.head, self.mean = nn.Linear(8, 3), TimeMean(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for conv, pool, lif in zip(self.convs, self.pools, self.lifs, strict=True):
            y = pool(lif(conv(y)))
        return self.mean(self.head(y.flatten(1)))


def test_a_module_that_runs_on_maps_of_two_sizes_is_counted_as_two_modules():
    torch.manual_seed(0)
    one, two, x = Shared(True), Shared(False), torch.rand(2, 2, 8, 8)
    two.load_state_dict(one.state_dict())
    ours, wanted = count_operations(one, x), count_operations(two, x)
    assert ours.rate == pytest.approx(wanted.rate)
    assert ours.total("acs") == wanted.total("acs") > 0
    for kind in ("convs", "pools", "lifs"):
        found, parts = ours.layers[f"{kind}.0"], [wanted.layers[f"{kind}.{k}"] for k in range(2)]
        for name in ("bias_adds", "neuron_updates", "dense", "padded", "outputs"):
            assert getattr(found, name) == sum(getattr(part, name) for part in parts), (kind, name)
        np.testing.assert_array_equal(found.acs, sum(part.acs for part in parts))
        np.testing.assert_array_equal(found.spikes, sum(part.spikes for part in parts))
        np.testing.assert_array_equal(found.neuron_spikes, np.concatenate([part.neuron_spikes for part in parts]))


def test_a_module_that_runs_on_what_is_held_and_on_what_changes_is_refused():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.end = nn.Conv2d(2, 2, 1), TimeMean(3)
            self.a, self.b = LIF(time_steps=3, constant_input=True), LIF(time_steps=3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.end(self.b(self.conv(self.a(self.conv(x)))))
            return y

    with pytest.raises(SpikeportError, match="conv: runs on what is held and again on what changes"):
        count_operations(Net(), torch.rand(1, 2, 4, 4))


class Parallel(nn.Module):
    """Two convolutions, then both of their BatchNorms; and layers that are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fire, self.end = LIF(time_steps=3, constant_input=True), TimeMean(3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(input=x), self.b(input=x)
        first = self.fire(x=self.norm_a(a))
        y: Tensor = self.end(first) + self.norm_b(b)
        return y


def test_batch_norms_fold_in_whatever_order_their_layers_run():
    counts = count_operations(Parallel(), torch.rand(2, 2, 5, 5)).layers
    assert (counts["norm_a"].folds_into, counts["norm_b"].folds_into) == (("a",), ("b",))
    assert counts["norm_a"].macs.size == counts["norm_b"].macs.size == 0
    assert counts["a"].bias_adds == counts["b"].bias_adds == 100


def test_an_analog_layer_beside_the_neurons_runs_once_whatever_the_steps():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
            self.first, self.next = LIF(time_steps=3, constant_input=True), LIF(time_steps=3)
            self.conv, self.hold, self.end = nn.Conv2d(4, 4, 1), HoldTime(3), TimeMean(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.end(self.next(self.conv(self.first(self.stem(x))) + self.hold(self.side(x))))
            return y

    layers = count_operations(Net(), torch.rand(1, 2, 4, 4) - 0.5).layers
    assert [name for name, c in layers.items() if c.held] == ["stem", "side"]
    assert layers["side"].work().scaled(1.0, 2.0).macs == layers["side"].dense


def test_a_network_of_one_step_whose_input_changes_holds_nothing():
    net = nn.Sequential(nn.Conv2d(2, 4, 1), LIF(time_steps=1), TimeMean(1))
    assert not count_operations(net, torch.rand(1, 3, 2, 4, 4)).layers["0"].held
    assert count_operations(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU()), torch.rand(3, 2, 4, 4)).layers["0"].held


class PassedOn(nn.Module):
    """Spikes of neurons ("a", "b", twice "a") and of a max-pooling that reach other neurons as they are."""

    def __init__(self, steps: int):
        super().__init__()
        self.a, self.b = (LIF(v_threshold=v, time_steps=steps, constant_input=True) for v in (0.3, 0.5))
        self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)
        self.c, self.d, self.e, self.f = (LIF(v_threshold=0.4, time_steps=steps) for _ in "cdef")
        self.head, self.mean = nn.Linear(8, 3), TimeMean(steps)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        both = torch.cat([a, self.b(x)], 1)
        pooled = self.pool(both)
        y = self.c(torch.add(self.conv(pooled).add_(pooled), other=pooled))
        z = self.d(both.flatten(2).unflatten(2, (4, 4))[:, :, ::2, ::2] + y)  # a part of the map is not passed on
        w = self.e(both + both.roll(1, 1))
        conv_of_a_sum = self.conv(y + z)
        y.mul_(0.5)  # written to: it holds spikes no longer
        return self.mean(self.head(torch.cat([self.f(y + conv_of_a_sum), w[:, :, :2, :2]], 1).mean((2, 3))))


def test_spikes_that_are_added_to_a_current_are_operations_of_those_who_fired_them():
    model, x = PassedOn(3), torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    layers = count_operations(model, x).layers
    expected = {"a": 2, "b": 2, "pool": 2, "c": 1, "d": 0, "e": 0, "f": 0}
    for name, times in expected.items():
        added = layers[name].acs - (or_neurons(layers, name) if name == "pool" else 0)
        assert layers[name].spikes.sum() > 0 or not times
        assert (added == times * layers[name].spikes).all(), name


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda y: y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
        lambda y: y.view(len(y), 2, 2, 5, 5).swapaxes(1, 2).reshape_as(y),
        lambda y: y.detach(),
        lambda y: y.unsqueeze(1).squeeze(1),
        lambda y: y.flip(1).roll(1, (2,)).movedim(2, 3),
        lambda y: y[:, [3, 1, 0, 2]],
        lambda y: y.index_select(1, torch.tensor([3, 1, 0, 2])),
    ],
)
@pytest.mark.parametrize("join", [torch.add, torch.sub, lambda a, b: a - b, lambda a, b: a.sub_(b)])
def test_spikes_that_are_rearranged_before_they_are_added_are_operations(rearranged, join):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fire = LIF(time_steps=3, constant_input=True, v_threshold=0.3)
            self.conv, self.next, self.end = nn.Conv2d(4, 4, 3, 1, 1), LIF(time_steps=3), TimeMean(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fire(x)
            z: Tensor = self.end(self.next(join(self.conv(y), rearranged(y))))
            return z

    x = torch.rand(5, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    fire = count_operations(Residual(), x).layers["fire"]
    assert fire.spikes.sum() > 0
    np.testing.assert_array_equal(fire.acs, fire.spikes)


@pytest.mark.parametrize("threshold", [0.3, 100.0])
def test_a_norm_of_spikes_folds_into_no_layer_whose_output_happens_to_be_equal(threshold):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fire = LIF(time_steps=3, constant_input=True, v_threshold=threshold)
            self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
            self.next, self.end = LIF(time_steps=3), TimeMean(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fire(x)
            z: Tensor = self.end(self.next(self.conv(y) + self.norm(y)))
            return z

    layers = count_operations(Net(), torch.rand(2, 4, 5, 5)).layers
    assert (layers["norm"].folds_into, layers["norm"].dense, layers["conv"].bias) == ((), 100, False)


def test_poolings_with_their_indices_are_counted_as_those_without():
    class Net(nn.Module):
        def __init__(self, indices: bool) -> None:
            super().__init__()
            self.conv, self.fire = nn.Conv2d(2, 4, 1), LIF(time_steps=3, constant_input=True, v_threshold=0.3)
            self.pool, self.next = nn.MaxPool2d(2, return_indices=indices), LIF(time_steps=3, v_threshold=0.1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.pool(self.fire(self.conv(x)))
            z: Tensor = self.next(y[0] if isinstance(y, tuple) else y)
            return z

    x = torch.rand(2, 2, 6, 6)
    with_indices, without = Net(True), Net(False)
    with_indices.load_state_dict(without.state_dict())
    found, wanted = (count_operations(net, x).layers["pool"] for net in (with_indices, without))
    assert (found.passes, found.outputs, found.dense) == (wanted.passes, wanted.outputs, wanted.dense)
    np.testing.assert_array_equal(found.acs, wanted.acs)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(count_operations(with_indices, x).layers["pool"].acs, wanted.acs)


def test_of_a_part_that_is_added_only_its_spikes_are_operations():
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fire = LIF(time_steps=3, constant_input=True, v_threshold=0.3)
            self.conv, self.next, self.end = nn.Conv2d(4, 6, 3, 2, 1), LIF(time_steps=3), LIF(time_steps=3)

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.fire(x)
            left, right = spikes.chunk(2, 1)
            y = self.next(self.conv(spikes) + nn.functional.pad(spikes[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
            return self.end(right + nn.functional.channel_shuffle(left, 2)).mean() + y.mean()

    model, x = Shortcut(), torch.rand(5, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    layers = count_operations(model, x).layers
    with torch.no_grad():
        spikes = model.fire(x).unflatten(0, (3, 5))
    wanted = spikes[..., ::2, ::2].sum((2, 3, 4)) + spikes.sum((2, 3, 4))
    assert 0 < wanted.sum() < 2 * spikes.sum()
    np.testing.assert_array_equal(layers["fire"].acs, wanted.T)


@pytest.mark.parametrize(
    "passed",
    [
        lambda spikes, y: sum([spikes, y]),
        lambda spikes, y: sum([y, spikes]),
        lambda spikes, y: torch.concat([spikes, spikes[:, :0]], 1) + y,
        lambda spikes, y: torch.concatenate([spikes[:, :2], spikes[:, 2:]], 1) + y,
        lambda spikes, y: nn.functional.channel_shuffle(spikes, 2) + y,
        lambda spikes, y: torch.cat([(c := nn.functional.channel_shuffle(spikes, 2))[:, :2], c[:, 2:]], 1) + y,
    ],
)
def test_spikes_are_followed_whatever_passes_them_on(passed):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fire, self.next = LIF(time_steps=3, constant_input=True, v_threshold=0.3), LIF(time_steps=3)
            self.conv, self.end = nn.Conv2d(4, 4, 1), TimeMean(3)

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.fire(x)
            y: Tensor = self.end(self.next(passed(spikes, self.conv(spikes))))
            return y

    fire = count_operations(Net(), torch.rand(3, 4, 4, 4)).layers["fire"]
    np.testing.assert_array_equal(fire.acs, fire.spikes)
    assert fire.spikes.sum() > 0


def or_neurons(layers: dict, name: str) -> np.ndarray:
    """Every spike on a map that windows tile is one operation of its max-pooling."""
    return layers[name].spikes_in

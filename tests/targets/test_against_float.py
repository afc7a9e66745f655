"""`simulate` holds a run against its own float model: accuracy, and every spike of every layer."""

import json
from dataclasses import replace
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import torch

from spikeport.core import LIF, SpikeportError, load_run, train
from spikeport.core.runs import save_weights
from spikeport.targets import SpikeRecord, check, compile, require_own, simulate
from spikeport.targets.loihi.against_float import against_float
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import differences


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A narrow SqueezeNet whose neurons fire in every layer, compiled."""
    folder = tmp_path_factory.mktemp("run") / "snn"
    train(tiny(width=0.125, epochs=1, v_threshold=0.3), folder)
    compile(folder)
    return folder


def spikes_of_the_model(run, x):
    """layer -> spikes [T, N, C, H, W] of the LIF layers in PyTorch."""
    model, seen = run.model(), {}
    for name, module in model.named_modules():
        if isinstance(module, LIF):

            def keep(module, args, output, name=name):
                seen[name] = output.unflatten(0, (module.time_steps, -1)).numpy()

            module.register_forward_hook(keep)
    with torch.no_grad():
        return seen, model(torch.from_numpy(x)).argmax(1).numpy()


def test_every_layer_is_compared_spike_for_spike(run):
    record = simulate(run, samples=20, rasters=20, overwrite=True)
    compared = record.details["against_float"]
    opened = load_run(run)
    x, labels = opened.samples(20)
    expected, classes = spikes_of_the_model(opened, x)
    sources = {p.source: p.name for p in LoihiProgram.load(run / "loihi/program.npz").populations}
    layers = {layer["layer"]: layer for layer in compared["layers"]}
    assert any(layer["differing"] for layer in layers.values()), "8 bits must move some spike for this to test anything"
    assert set(expected) <= set(layers)
    for name, spikes in expected.items():
        fixed = record.rasters[sources[name]].swapaxes(0, 1)
        assert spikes.any()
        assert layers[name]["neurons"] == spikes.size
        assert layers[name]["float_spikes"] == spikes.sum()
        assert layers[name]["fixed_spikes"] == fixed.sum()
        assert layers[name]["differing"] == (fixed != spikes).sum()
        assert layers[name]["share"] == (fixed != spikes).mean()
    order = list(layers)
    first = compared["first_difference"]
    assert layers[first]["differing"]
    assert not any(layers[n]["differing"] for n in order[: order.index(first)])
    assert compared["float_accuracy"] == (classes == labels).mean()
    assert compared["fixed_accuracy"] == record.accuracy
    assert compared["same_class"] == (classes == record.outputs.argmax(1)).mean()
    saved = SpikeRecord.load(run / "loihi/fixed.npz").details["against_float"]
    assert json.dumps(saved) == json.dumps(compared)


def test_in_several_processes_it_is_the_same(run):
    one, two = (simulate(run, samples=40, rasters=36, processes=n, overwrite=True) for n in (1, 2))
    assert differences(one, two) == []
    assert one.details == two.details
    assert (one.accuracy, one.program) == (two.accuracy, two.program)
    for name, maps in one.rasters.items():
        assert len(maps) == 36
        np.testing.assert_array_equal(maps, two.rasters[name])


def test_samples_of_the_users_need_no_classes(run):
    x, _ = load_run(run).samples(3)
    compared = simulate(run, x=x, overwrite=True).details["against_float"]
    assert compared["float_accuracy"] is None
    assert compared["samples"] == 3


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_samples_of_any_real_type_are_compared(run, dtype):
    x = load_run(run).samples(3)[0].round().astype(dtype)
    compared = [simulate(run, x=x.astype(t), overwrite=True).details["against_float"] for t in (dtype, np.float32)]
    assert compared[0] == compared[1]


def test_a_program_of_other_weights_is_refused_and_one_that_does_not_say_is_taken(run, tmp_path):
    """A twin of equal layers, whose program takes the place of the run's own."""
    other = tmp_path / "other"
    copytree(run, other, ignore=ignore_patterns("loihi", "nir"))
    model = load_run(run).model()
    with torch.no_grad():
        model.stem.bn.bias += 0.1
    save_weights(model, other / "weights.safetensors")
    compile(other)
    require_own(load_run(other), LoihiProgram.load(other / "loihi/program.npz"))
    copytree(run / "loihi", other / "loihi", dirs_exist_ok=True)
    foreign = LoihiProgram.load(other / "loihi/program.npz")
    message = "its program was compiled from other weights .*; `spikeport export .*other --target loihi --overwrite`"
    for refuse in (lambda: require_own(load_run(other), foreign), lambda: simulate(other, samples=2, overwrite=True)):
        with pytest.raises(SpikeportError, match=message):
            refuse()
    replace(foreign, metadata=foreign.metadata | {"weights_sha256": None}).save(other / "loihi/program.npz")
    assert simulate(other, samples=2, overwrite=True).samples == 2


def test_a_graph_of_the_weights_before_is_not_compiled(run, tmp_path):
    other = tmp_path / "other"
    copytree(run, other, ignore=ignore_patterns("loihi"))
    model = load_run(run).model()
    with torch.no_grad():
        model.stem.bn.bias += 0.1
    save_weights(model, other / "weights.safetensors")
    for refuse in (compile, check):
        with pytest.raises(SpikeportError, match="model.nir: exported from other weights than the run has now; `spike"):
            refuse(other)
    compile(other, overwrite=True)
    assert check(other).fits


def test_a_layer_without_differences_is_none(run):
    """A first layer that never fires on either side."""
    opened = load_run(run)
    model = opened.model()
    with torch.no_grad():
        model.stem.bn.bias.fill_(-3.0)
    save_weights(model, run / "weights.safetensors")
    compile(run, overwrite=True)
    compared = simulate(run, samples=4, overwrite=True).details["against_float"]
    first = compared["layers"][0]
    assert (first["layer"], first["float_spikes"], first["differing"]) == ("stem.act", 0, 0)
    assert compared["first_difference"] != "stem.act"


def test_a_program_of_another_network_is_refused(run, tiny, tmp_path):
    train(tiny(width=0.125, epochs=1, keep=(6,)), tmp_path / "other")
    compile(tmp_path / "other")
    other = LoihiProgram.load(tmp_path / "other/loihi/program.npz")
    with pytest.raises(SpikeportError, match="its program was compiled from other weights .*; `spikeport export"):
        against_float(load_run(run), other, np.zeros((1, *other.input_shape), np.float32), None)


def test_a_certificate_whose_file_is_gone_does_not_keep_a_run_from_being_checked(run):
    (run / "nir/model.nir").unlink()
    assert check(run).fits
    assert (run / "nir/model.nir").is_file()

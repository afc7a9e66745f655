"""A full report of a network that is no run: the user's model, counted on the samples that were simulated."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import snntorch
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from spikeport import compile, convert, report, simulate, to_nir, train
from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.export.foreign import owner_forward
from spikeport.profiling.counting import count_operations
from spikeport.targets import SpikeRecord, compile_model
from spikeport.targets.loihi.against_float import against_float, own_model
from spikeport.targets.loihi.program import LoihiProgram

STEPS, COUNT = 4, 6


def theirs():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(v_threshold=0.3), layer.MaxPool2d(2)),
        *(layer.Flatten(), layer.Linear(4 * 16, 16), neuron.IFNode(v_threshold=0.2), layer.Linear(16, 3)),
    )
    return model.eval()


def of_snntorch():
    torch.manual_seed(0)
    leaky = {"beta": 0.5, "threshold": 0.2, "init_hidden": True, "reset_mechanism": "zero"}
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), snntorch.Leaky(**leaky), nn.Flatten(), nn.Linear(4 * 36, 3)),
    ).eval()


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def twin(v_threshold=0.2):
    return convert(cnn(), time_steps=STEPS, v_threshold=v_threshold).eval()


def samples(seed=0):
    return np.random.default_rng(seed).uniform(-2, 2, (COUNT, 2, 8, 8)).astype(np.float32)


def exported(model, folder, x, time_steps=None, labels=None):
    """The folder, with a program and a record of the samples."""
    compile_model(model, folder, x, time_steps)
    simulate(folder / "loihi/program.npz", x=x, labels=labels)
    return folder


@pytest.mark.parametrize("build", [theirs, of_snntorch])
def test_models_of_other_frameworks_are_counted_beside_their_engine(tmp_path, build):
    x, labels = samples(), np.arange(COUNT) % 3
    folder = exported(build(), tmp_path, x, STEPS, labels)
    written = report(folder, network=build(), x=x)
    counts = count_operations(build(), torch.from_numpy(x), time_steps=STEPS)
    content = written.content
    assert content["totals"]["training"]["acs"] == pytest.approx(counts.total("acs"))
    assert set(content["layers"]) == set(counts.layers)
    assert {name for name, entry in content["energy"].items() if "training" in entry["nj"]} >= {"lemaire", "paper"}
    assert content["summary"]["snn"]["parameters"] == sum(p.numel() for p in build().parameters())
    assert content["summary"]["snn"]["test_accuracy"] is None
    for row in written.rows:
        if not row.analog and "training" in row.acs and counts.total("acs"):
            assert row.acs["fixed"] == pytest.approx(row.acs["training"], rel=0.5), row.layer
    assert set(content["statistics"]) == {n for n, c in counts.layers.items() if c.kind == "LIF"}
    assert all(set(s["classes"]) == {0, 1, 2} for s in content["statistics"].values())
    assert content["certificates"]["nir"]["samples"] == COUNT
    page = written.page.read_text()
    assert f"<h1>{content['network']['model']['name']}</h1>" in page
    assert "SNN, counted in PyTorch" in page


class Beside(nn.Module):
    """Its neurons take the input itself beside a convolution of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.fire = nn.Conv2d(2, 2, 3, padding=1), neuron.LIFNode(v_threshold=0.3)
        self.head = nn.Linear(2 * 64, 3)

    def forward(self, x):
        return self.head(self.fire(self.conv(x) + x).flatten(1))


def encoding(*first):
    lif, out = neuron.LIFNode(v_threshold=0.3), neuron.LIFNode(v_threshold=0.1)
    size = 2 * (64 if not first else 16)
    return nn.Sequential(*first, lif, layer.Flatten(), layer.Linear(size, 6), out, layer.Linear(6, 3)).eval()


@pytest.mark.parametrize("build", [theirs, encoding, lambda: encoding(layer.AvgPool2d(2)), Beside])
def test_every_place_says_the_same_energy(tmp_path, build):
    """Where the input enters neurons as it is the chip has a synapse, and training none."""
    torch.manual_seed(0)
    model = build().eval()
    x = samples()
    folder = exported(model, tmp_path, x, STEPS)
    content = report(folder, network=model, x=x, check=True).content
    assert {check["unexplained"] for check in content["cross_check"]} == {0}
    for witness in ("training", "fixed"):
        energy = content["energy"]["horowitz"]["nj"][witness]
        assert energy == pytest.approx(content["totals"][witness]["energy_nj"])
        assert energy == pytest.approx(sum(row["energy_nj"].get(witness, 0) for row in content["rows"]))
        assert energy > 0
    layers = content["energy"]["horowitz"]["layers"]["training"]
    assert content["energy"]["horowitz"]["nj"]["training"] == pytest.approx(
        sum(sum(c.values()) for c in layers.values())
    )
    assert content["totals"]["training"]["macs"] == content["summary"]["snn"]["macs"]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_engine_is_held_against_the_model(tmp_path, processes):
    x, labels = samples(), np.arange(COUNT) % 3
    folder = exported(theirs(), tmp_path, x, STEPS)
    program = folder / "loihi/program.npz"
    record = simulate(program, x=x, labels=labels, network=theirs(), processes=processes, overwrite=True)
    compared = record.details["against_float"]
    spikes, outputs = owner_forward(theirs(), x, STEPS)
    layers = {layer["layer"]: layer for layer in compared["layers"]}
    assert {name: layers[name]["float_spikes"] for name in spikes} == {n: s.sum() for n, s in spikes.items()}
    assert min(s.sum() for s in spikes.values()) > 0
    assert compared["float_accuracy"] == (outputs.mean(0).argmax(1) == labels).mean()
    assert compared["samples"] == COUNT
    other = theirs()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    for match, network in (("compiled from another network", other), ("has no spiking neurons", cnn())):
        with pytest.raises(SpikeportError, match=match):
            simulate(program, x=x, network=network, overwrite=True)


def test_a_network_of_vectors(tmp_path):
    def flat():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 9), neuron.LIFNode(v_threshold=0.1), nn.Linear(9, 3)).eval()

    x = samples().reshape(COUNT, -1)[:, :12]
    folder = exported(flat(), tmp_path, x, STEPS)
    record = simulate(folder / "loihi/program.npz", x=x, network=flat(), overwrite=True)
    spikes, _ = owner_forward(flat(), x, STEPS)
    (layer,) = record.details["against_float"]["layers"]
    assert layer["float_spikes"] == spikes["1"].sum() > 0
    assert report(folder, network=flat(), x=x).content["statistics"]["1"]["neurons"] == 9


class Viewed(nn.Module):
    """Flattens with view, which asks for contiguous maps; ``gain`` and ``dilation`` are in no state dict."""

    def __init__(self, dilation=1, gain=1.0, pool=nn.MaxPool2d):
        super().__init__()
        torch.manual_seed(0)
        self.gain, self.pool = gain, pool(2)
        self.conv, self.fire = nn.Conv2d(2, 4, 3, padding=dilation, dilation=dilation), neuron.LIFNode(v_threshold=0.2)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x):
        x = self.pool(self.fire(self.conv(x) * self.gain))
        return self.head(x.view(x.size(0), -1))


def test_the_model_runs_as_it_was_written_and_is_known_by_all_that_it_computes(tmp_path):
    x = samples()
    folder = exported(Viewed().eval(), tmp_path, x, STEPS)
    program = folder / "loihi/program.npz"
    for processes in (1, 2):
        record = simulate(program, x=x, network=Viewed(), processes=processes, overwrite=True)
        assert (
            record.details["against_float"]["layers"][0]["float_spikes"]
            == owner_forward(Viewed(), x, STEPS)[0]["fire"].sum()
            > 0
        )
    for other in (Viewed(dilation=2), Viewed(gain=3.0), Viewed(pool=nn.AvgPool2d)):
        for refuse in (
            lambda other=other: simulate(program, x=x, network=other, overwrite=True),
            lambda other=other: report(folder, network=other, x=x),
        ):
            with pytest.raises(SpikeportError, match="compiled from another network"):
                refuse()


def test_a_model_that_no_other_process_can_make_is_told(tmp_path):
    class Local(nn.Sequential):
        pass

    x = np.concatenate([samples(seed) for seed in range(7)])
    folder = exported(Local(*theirs()), tmp_path, x, STEPS)
    program = LoihiProgram.load(folder / "loihi/program.npz")
    model = own_model(Local(*theirs()).eval(), x.shape, program)
    model.kind = Local
    with pytest.raises(SpikeportError, match="cannot be sent to other processes .*define what it needs in a module"):
        against_float(model, program, x, processes=2)


def test_the_program_of_a_run_takes_the_runs_network_alone(tmp_path, tiny):
    run = train(tiny(width=0.125, v_threshold=0.3), tmp_path / "run")
    compile(run.path)
    (tmp_path / "moved").mkdir()
    shutil.copytree(run.path / "loihi", tmp_path / "moved/loihi")
    x, _ = run.samples(3)
    program = tmp_path / "moved/loihi/program.npz"
    simulate(program, x=x, network=run.model())
    assert report(tmp_path / "moved", network=run.model(), x=x).content["totals"]["training"]["acs"] > 0
    other = run.model()
    with torch.no_grad():
        next(other.parameters()).mul_(1.7)
    with pytest.raises(SpikeportError, match="compiled from another network"):
        simulate(program, x=x, network=other, overwrite=True)


def test_a_certificate_of_another_network_is_not_shown(tmp_path):
    x = samples()
    folder = exported(twin(), tmp_path, x)
    assert report(folder, network=twin(), x=x).content["certificates"]
    to_nir(twin(v_threshold=0.3), folder / "nir/model.nir", x, overwrite=True)
    assert report(folder, network=twin(), x=x, overwrite=True).content["certificates"] == {}


def test_a_cnn_of_other_layers_is_no_twin(tmp_path):
    x = samples()
    folder = exported(twin(), tmp_path, x)
    for other, name in (
        (nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 3)), "0"),
        (nn.Sequential(nn.Identity(), nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 64, 3)), "4"),
    ):
        with pytest.raises(SpikeportError, match=f"no twin: its layer {name} is Linear|its layer {name} is Conv2d"):
            report(folder, other, network=twin(), x=x)


def test_records_of_other_classes_are_refused(tmp_path):
    x, labels = samples(), np.arange(COUNT) % 3
    folder = exported(twin(), tmp_path, x, labels=labels)
    record = SpikeRecord.load(folder / "loihi/fixed.npz")
    replace(record, engine="lava", labels=labels[::-1].copy()).save(folder / "loihi/lava.npz")
    with pytest.raises(SpikeportError, match="other classes for the same samples"):
        report(folder, network=twin(), x=x)


def test_a_twin_of_ones_own_stands_beside_its_cnn(tmp_path):
    x = samples()
    written = report(exported(twin(), tmp_path, x), cnn(), network=twin(), x=x)
    macs = 36 * 4 * 2 * 9 + 4 * 36 * 3
    assert written.content["summary"]["cnn"]["macs"] == macs
    assert written.content["energy"]["horowitz"]["nj"]["cnn"] == pytest.approx(4.6 * macs / 1e3)
    assert [row.cnn_macs for row in written.rows] == [36 * 4 * 2 * 9, 4 * 36 * 3]
    assert "CNN" in written.page.read_text()


def test_the_first_of_the_samples_that_an_engine_saw(tmp_path):
    """A record of fewer samples than are given; the picture is of the model's spikes."""
    x = samples()
    folder = exported(twin(), tmp_path, x[:3])
    content = report(folder / "loihi/fixed.npz", network=twin(), x=x, sample=2, out=tmp_path / "r").content
    assert content["network"]["samples_compared"] == 3
    counts = count_operations(twin(), torch.from_numpy(x[:3]))
    assert content["totals"]["training"]["acs"] == pytest.approx(counts.total("acs"))


def test_one_engine_alone_and_its_images(tmp_path):
    """Beside a record of fewer images the other is cut to them, unless it is asked for alone."""
    x = samples()
    folder = exported(twin(), tmp_path, x)
    record = simulate(folder / "loihi/program.npz", x=x[:2], out=tmp_path / "two.npz")
    replace(record, engine="lava").save(folder / "loihi/lava.npz")
    own = {"network": twin(), "x": x, "overwrite": True}
    assert report(folder, **own).content["network"]["samples_compared"] == 2
    content = report(folder, **own, engine="fixed").content
    assert content["network"]["samples_compared"] == COUNT
    assert set(content["totals"]) == {"training", "fixed"}
    (folder / "loihi/lava.npz").unlink()
    for match, engine in (
        ("nothing simulated yet; .*program.npz --input X.npy --target loihi --engine lava", "lava"),
        ("has no engine 'chip'", "chip"),
    ):
        with pytest.raises(SpikeportError, match=match):
            report(folder, **own, engine=engine)
    with pytest.raises(SpikeportError, match="is one record; leave the engine out"):
        report(folder / "loihi/fixed.npz", **own, engine="fixed")


def test_an_input_that_changes(tmp_path):
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.act = nn.Conv2d(2, 4, 3), LIF(v_threshold=0.2, time_steps=STEPS)
            self.head, self.mean = nn.Linear(4 * 36, 3), TimeMean(STEPS)

        def forward(self, x):
            return self.mean(self.head(self.act(self.conv(x)).flatten(1)))

    x = np.random.default_rng(0).uniform(-2, 2, (STEPS, 5, 2, 8, 8)).astype(np.float32)
    folder = exported(Moving().eval(), tmp_path, x)
    compared = simulate(folder / "loihi/program.npz", x=x, network=Moving(), overwrite=True).details["against_float"]
    model = Moving().eval()
    with torch.no_grad():
        fired = model.act(model.conv(torch.from_numpy(x).flatten(0, 1)))
    assert [(n["layer"], n["float_spikes"], n["neurons"]) for n in compared["layers"]] == [
        ("act", int(fired.sum()), fired.numel())
    ]
    content = report(folder, network=Moving(), x=x, sample=4).content
    assert content["network"]["samples_compared"] == 5
    counts = count_operations(Moving(), torch.from_numpy(x))
    assert content["totals"]["training"]["acs"] == pytest.approx(counts.total("acs"))
    events = np.random.default_rng(0).poisson(0.7, x.shape).astype(np.float32)
    folder = exported(theirs(), tmp_path / "theirs", events, STEPS)
    content = report(folder, network=theirs(), x=events).content
    counts = count_operations(theirs(), torch.from_numpy(events), time_steps=STEPS)
    assert content["totals"]["training"]["acs"] == pytest.approx(counts.total("acs")) != 0
    with pytest.raises(SpikeportError, match="the cross-check runs other tools on one image; this program's input"):
        report(folder, network=theirs(), x=events, check=True, overwrite=True)
    with pytest.raises(SpikeportError, match="a CNN takes one image; this program's input changes"):
        report(folder, cnn(), network=theirs(), x=events, overwrite=True)


def test_what_is_another_network_or_other_samples_is_refused_and_nothing_written(tmp_path):
    x = samples()
    folder = exported(twin(), tmp_path, x)
    trained_on = twin()
    with torch.no_grad():
        next(trained_on.parameters()).add_(0.1)
    own = {"network": twin(), "x": x}
    for match, arguments in (
        ("the program was compiled from another network", own | {"network": trained_on}),
        ("the program was compiled from another network", own | {"network": twin(v_threshold=0.3)}),
        ("Sequential has no spiking neurons", own | {"network": cnn()}),
        ("has no values yet", own | {"network": twin().to("meta")}),
        ("the fixed record is of other samples than the first 6 given", own | {"x": samples(1)}),
        ("4 samples; the fixed record is of 6: give all of them", own | {"x": x[:4]}),
        (r"the samples have shape \[2\]; give those that were simulated", own | {"x": x[0, :, 0, 0]}),
        ("give both, or neither", {"network": twin()}),
        ("give both, or neither", {"x": x}),
        ("Sequential is an SNN; give its CNN twin", own | {"against": theirs()}),
        ("is an SNN; give its CNN twin", own | {"against": twin()}),
        ("a model is counted on its twin's samples", {"against": cnn()}),
        ("its layer conv is Conv2d of .*the SNN's is not there", own | {"against": nn.Sequential()}),
    ):
        if "conv" in match:
            arguments["against"].add_module("conv", nn.Conv2d(2, 4, 3))
        with pytest.raises(SpikeportError, match=match):
            report(folder, **arguments)
    assert not (folder / "report").exists()


def test_layers_that_never_fire_are_told(tmp_path, capsys):
    """Few spikes look cheap: the page says where there are none."""
    x = samples()
    model = twin()
    (neurons,) = [m for m in model.modules() if isinstance(m, LIF)]
    neurons.v_threshold = 12.0
    written = report(exported(model, tmp_path, x), network=model, x=x)
    (name,) = written.content["statistics"]
    assert written.content["summary"]["silent_layers"] == [name]
    assert re.search(f"Never fired on these images: {name}", written.page.read_text())

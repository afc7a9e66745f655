"""A chain as a .net file: lava-dl's own netx loads it and fires the fixed engine's spikes; all else is refused."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import netx_reader
import numpy as np
import pytest
import torch
from hypothesis import given
from networks import RandomNet
from programs import chains, programs, uneven_chain
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.export import to_nir
from spikeport.targets import compile
from spikeport.targets.loihi import lava
from spikeport.targets.loihi.check import check_program
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.netx import for_netx, write_net
from spikeport.targets.loihi.program import INPUT, LoihiProgram

READER = Path(netx_reader.__file__)
WORKER = Path(lava.__file__).parent


class Chain(nn.Module):
    """In the manner of VGG: convolutions, a depthwise one, max pooling, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        lif = lambda first=False: LIF(tau=1.7, v_threshold=0.4, time_steps=4, constant_input=first)  # noqa: E731
        self.body = nn.Sequential(
            *(nn.Conv2d(2, 8, 3, padding=1), lif(True), nn.Conv2d(8, 8, 3, groups=8), lif(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 2, stride=(2, 1), groups=2), lif(), nn.Flatten(), nn.Linear(24, 10), lif()),
            nn.Linear(10, 3),
        )
        self.mean = TimeMean(4)
        for parameter in self.parameters():
            parameter.data *= 2  # so that every layer fires

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.mean(self.body(x))
        return y


def assert_netx_equals(python: Path, program: LoihiProgram, net: Path, x: np.ndarray) -> None:
    """Every layer, step and sample, and the sums; something fires in every layer."""
    q = program.quantise(x)
    np.save(net.with_name("q.npy"), np.broadcast_to(q, (len(q), program.time_steps, *q.shape[2:])))
    command = [python, READER, WORKER, net, net.with_name("q.npy"), net.with_name("found.npz")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, start_new_session=True)
    assert done.returncode == 0, done.stderr
    expected = simulate_fixed(program, x, rasters=len(x))
    with np.load(net.with_name("found.npz")) as found:
        for index, population in enumerate(program.populations):
            if population.spiking:
                np.testing.assert_array_equal(found[f"layer{index}"], expected.rasters[population.name])
                assert 0 < found[f"layer{index}"].mean() < 1
        np.testing.assert_array_equal(found["sums"], expected.output_sums)


def test_netx_runs_a_chain_of_pytorch(lava: Path, tmp_path: Path) -> None:
    x = 2 * np.random.default_rng(0).normal(size=(4, 2, 8, 8)).astype(np.float32)
    to_nir(Chain().eval(), tmp_path / "model.nir", x)
    program = compile(tmp_path / "model.nir", tmp_path / "program.npz", calibration=x, net=True)
    assert program.digest() == LoihiProgram.load(tmp_path / "program.npz").digest()
    assert_netx_equals(lava, program, tmp_path / "model.net", x)


def test_the_compatibility_file_is_about_the_program_beside_it(tmp_path: Path) -> None:
    """Biases of a .net file are whole weight steps: their exponent is 6, whatever the compiler alone would choose."""
    x = 2 * np.random.default_rng(0).normal(size=(4, 2, 8, 8)).astype(np.float32)
    to_nir(Chain().eval(), tmp_path / "model.nir", x)
    for net in (False, True):
        program = compile(tmp_path / "model.nir", tmp_path / f"{net}/program.npz", calibration=x, net=net)
        found = json.loads((tmp_path / f"{net}/compatibility.json").read_text())["rows"]
        expected = json.loads(json.dumps([asdict(row) for row in check_program(program).rows]))
        assert [row for row in found if row["rule"] != "decay rounding error"] == expected
        assert any(row["rule"] == "decay rounding error" for row in found)
        exponents = {row["used"] for row in found if row["rule"] == "bias exponent"}
        assert (exponents == {6}) == net


def test_an_unknown_chip_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 2, 8, 8)).astype(np.float32)
    to_nir(Chain().eval(), tmp_path / "model.nir", x)
    with pytest.raises(SpikeportError, match="unknown chip 'loihi3'"):
        compile(tmp_path / "model.nir", tmp_path / "out/program.npz", chip="loihi3", calibration=x)
    assert not (tmp_path / "out").exists()


def test_netx_runs_a_chain_with_currents_that_decay(lava: Path, tmp_path: Path) -> None:
    program, x = uneven_chain()
    program = for_netx(program)
    write_net(program, tmp_path / "model.net")
    assert_netx_equals(lava, program, tmp_path / "model.net", x)


@given(chains())
def test_the_file_holds_the_program(tmp_path_factory: pytest.TempPathFactory, program: LoihiProgram) -> None:
    rounded = for_netx(program)
    path = tmp_path_factory.mktemp("net") / "model.net"
    write_net(rounded, path)
    with h5py.File(path) as file:
        assert len(file["layer"]) == 1 + len(program.populations)
        assert file.attrs["reset_interval"] == program.time_steps
        for index, (before, after) in enumerate(zip(program.populations, rounded.populations, strict=True), 1):
            layer, (synapse,) = file[f"layer/{index}"], program.into(before.name)
            np.testing.assert_array_equal(layer["weight"][()], synapse.weight)
            assert tuple(layer["shape"]) == before.shape
            assert np.abs(layer["bias"][()] * 64 - before.bias[:, 0, 0]).max() <= 32
            np.testing.assert_array_equal(layer["bias"][()] * 64, after.bias[:, 0, 0])
            assert layer["neuron/iDecay"][()] == before.du + 1
            assert layer["neuron/vThMant"][()] == before.vth


def test_biases_become_the_nearest_whole_weight_steps() -> None:
    program, _ = uneven_chain()
    first, *others = program.populations
    first = replace(first, bias_mant=np.array([-97, -33, -31, 0, 31, 33, 64, 97], np.int32), bias_exp=0)
    rounded = for_netx(replace(program, populations=(first, *others))).populations[0]
    assert (rounded.bias_mant.tolist(), rounded.bias_exp) == ([-2, -1, 0, 0, 0, 1, 1, 2], 6)


@given(programs())
def test_what_is_no_chain_is_refused(drawn: tuple[LoihiProgram, np.ndarray]) -> None:
    program, _ = drawn
    leaving = [INPUT, *(p.name for p in program.populations[:-1])]
    wrong = [name for name in leaving if len(program.out_of(name)) != 1]
    if wrong:
        with pytest.raises(SpikeportError, match=f"^{wrong[0]}: .*a .net file holds a chain of layers only"):
            for_netx(program)
    elif any(p.bias_mant.ndim > 1 or np.ndim(p.du) + np.ndim(p.dv) + np.ndim(p.vth) for p in program.populations):
        with pytest.raises(SpikeportError, match=r"its bias differs within maps|d[uv]|vth differs between channels"):
            for_netx(program)
    else:
        for_netx(program)


def test_a_refused_network_leaves_no_file(tmp_path: Path) -> None:
    net = RandomNet(["residual"], 4, 6, 2, 0, pooled=True).eval()
    x = np.random.default_rng(0).normal(size=(2, 2, 6, 6)).astype(np.float32)
    to_nir(net, tmp_path / "model.nir", x)
    with pytest.raises(SpikeportError, match="^stem_lif: leads to stages_0_a_lif, stem_lif_relay; a .net file"):
        compile(tmp_path / "model.nir", tmp_path / "out/program.npz", calibration=x, net=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias_mant": np.full(8, 4095, np.int32), "bias_exp": 7}, "a bias of 8190 weight steps"),
        ({"vth": np.arange(8)}, "vth differs between channels"),
        ({"bias_mant": np.zeros((8, 4, 6), np.int32)}, "its bias differs within maps"),
    ],
)
def test_what_netx_cannot_hold_is_refused(change: dict, told: str) -> None:
    program, _ = uneven_chain()
    first, *others = program.populations
    with pytest.raises(SpikeportError, match=f"^{first.name}: {told}.*export without --net"):
        for_netx(replace(program, populations=(replace(first, **change), *others)))

"""The report's files hold what docs/energy.md says; every wrong input ends in one clear error and no file."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from twins import exported_twins

from spikeport import load_run, report, simulate, train
from spikeport.core import SpikeportError
from spikeport.profiling.energy_table import NAMES
from spikeport.targets import SpikeRecord

DOCS = Path(__file__).parents[2] / "docs/energy.md"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    return exported_twins(tmp_path_factory.mktemp("runs"), tiny, samples=8)


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    return report(runs / "snn", runs / "cnn", tmp_path_factory.mktemp("report") / "report")


def test_the_json_has_the_documented_keys(written):
    content = json.loads((written.page.parent / "report.json").read_text())
    section = DOCS.read_text().split("## report.json")[1]
    documented = {
        name for line in re.findall(r"^\| (`.*?`) \|", section, re.M) for name in re.findall(r"`(\w+)`", line)
    }
    assert set(content) == documented | {"schema"}
    assert content["schema"] == int(re.search(r"`schema` is (\d+)", section).group(1))


def test_every_model_speaks_for_the_witnesses_it_can(written):
    energy = written.content["energy"]
    assert tuple(energy) == NAMES
    for name in ("horowitz", "horowitz-int8"):
        assert set(energy[name]["nj"]) == {"cnn", "training", "fixed"}
    totals = written.content["totals"]
    for witness in ("training", "fixed"):
        assert energy["horowitz"]["nj"][witness] == pytest.approx(totals[witness]["energy_nj"])
        expected = (0.03 * totals[witness]["acs"] + 0.23 * totals[witness]["macs"]) / 1e3
        assert energy["horowitz-int8"]["nj"][witness] == pytest.approx(expected)
    assert energy["horowitz"]["nj"]["cnn"] == pytest.approx(written.content["summary"]["cnn"]["energy_nj"])
    assert set(energy["lemaire"]["nj"]) == set(energy["paper"]["nj"]) == {"cnn", "training"}
    assert "Loihi 1 cannot run" in energy["loihi1"]["refused"]
    assert set(written.content["break_even"]) == {"horowitz", "horowitz-int8", "lemaire"}


def test_a_record_alone_says_which_models_need_its_run(runs, tmp_path):
    energy = report(runs / "snn/loihi/fixed.npz", out=tmp_path / "report").content["energy"]
    assert set(energy["horowitz"]["nj"]) == {"fixed"}
    for name in ("lemaire", "paper"):
        assert energy[name]["nj"] == {}
        assert "report on its run" in energy[name]["refused"]
    assert energy["horowitz"]["refused"] == ""


def test_the_table_of_layers_is_the_rows(written):
    with (written.page.parent / "layers.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["layer"] for line in lines] == [row.layer for row in written.rows]
    for line, row in zip(lines, written.rows, strict=True):
        assert float(line["acs_training"]) == row.acs["training"]
        assert float(line["divergence_fixed"] or 0) == row.divergence.get("fixed", 0)
        assert float(line["graded_events_fixed"] or 0) == row.graded_events.get("fixed", 0)


def test_the_page_names_its_images_and_shows_what_it_promises(written):
    page = written.page.read_text()
    (graded,) = [row.graded_events["fixed"] for row in written.rows if row.graded_events]
    assert f"graded events, fixed: {graded:,.0f}" in page
    assert "operations, energy and rate are per image, over the first 8 test images" in page
    assert "{&#39;" not in page.split("Versions: ")[1], "a Python dict is no version"


def test_int8_stands_beside_fp32(written):
    onnx = written.content["summary"]["onnx"]
    assert onnx["latency_ms"] > 0
    assert onnx["int8"]["latency_ms"] > 0
    assert 0 <= onnx["int8"]["accuracy"] <= 1
    assert f"int8: accuracy {100 * onnx['int8']['accuracy']:.1f} %" in written.page.read_text()


def test_divergence_does_not_let_images_cancel(runs, tmp_path):
    record = SpikeRecord.load(runs / "snn/loihi/fixed.npz")
    moved = {name: np.roll(counts, 1, axis=0) for name, counts in record.spikes.items()}
    folder = copy(runs, tmp_path, replace(record, spikes=moved))
    rows = [row for row in report(folder).rows if row.divergence]
    before = {row.neurons_layer: row for row in report(runs / "snn", out=tmp_path / "before").rows}
    for row in rows:
        assert row.spikes["fixed"] == pytest.approx(before[row.neurons_layer].spikes["fixed"])
    assert max(row.divergence["fixed"] for row in rows) > max(
        row.divergence["fixed"] for row in before.values() if row.divergence
    )


def copy(runs: Path, target: Path, record: SpikeRecord) -> Path:
    folder = target / "snn"
    (folder / "loihi").mkdir(parents=True)
    for name in ("model.json", "weights.safetensors", "config.toml", "loihi/program.npz"):
        (folder / name).write_bytes((runs / "snn" / name).read_bytes())
    record.save(folder / "loihi/fixed.npz")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["nosuch"]}, "unknown energy model 'nosuch'; available: horowitz, horowitz-int8, lemaire, paper"),
        ({"sample": 8}, "sample 8 is not there; the report is on samples 0 to 7"),
        ({"sample": -1}, "sample -1 is not there"),
    ],
)
def test_what_cannot_be_shown_is_refused(runs, tmp_path, options, message):
    with pytest.raises(SpikeportError, match=message):
        report(runs / "snn", out=tmp_path / "report", **options)
    assert not (tmp_path / "report").exists()


def test_records_of_zero_samples_other_steps_and_a_cnn_are_refused(runs, tmp_path, tiny):
    record = SpikeRecord.load(runs / "snn/loihi/fixed.npz")
    none = {kind: {n: v[:0] for n, v in getattr(record, kind).items()} for kind in ("spikes", "digests", "events")}
    empty = replace(record, outputs=record.outputs[:0], output_sums=record.output_sums[:0], labels=None, **none)
    folder = copy(runs, tmp_path / "a", empty)
    with pytest.raises(SpikeportError, match="zero samples|0 samples"):
        report(folder / "loihi/fixed.npz")
    folder = copy(runs, tmp_path / "b", record)
    text = json.loads((folder / "model.json").read_text())
    text["model"]["twin"]["time_steps"] += 1
    (folder / "model.json").write_text(json.dumps(text))
    with pytest.raises(SpikeportError, match="the program runs 4 steps, the model 5; export the model again"):
        report(folder)
    with pytest.raises(SpikeportError, match="is a CNN; give the SNN's run"):
        report(runs / "cnn")
    with pytest.raises(SpikeportError, match="cross-check runs other tools on the model; give the run"):
        report(runs / "snn/loihi/fixed.npz", out=tmp_path / "c", check=True)


def test_records_of_other_images_are_refused(runs, tmp_path):
    run = load_run(runs / "snn")
    x, labels = run.samples(8)
    folder = copy(runs, tmp_path, SpikeRecord.load(runs / "snn/loihi/fixed.npz"))
    simulate(folder, x=x[::-1].copy(), labels=labels, overwrite=True)
    with pytest.raises(SpikeportError, match="the fixed record is of other samples than the first 8 test images"):
        report(folder)
    simulate(folder, x=x, labels=labels, overwrite=True)
    shutil.copytree(runs / "cnn", tmp_path / "cnn")
    simulate(tmp_path / "cnn", "onnx", x=x[:6] * 0.5, labels=labels[:6], overwrite=True)
    with pytest.raises(SpikeportError, match="onnx/record.json is of other samples than the first 6 test images"):
        report(folder, tmp_path / "cnn")


def test_what_is_no_twin_is_refused(runs, tmp_path, tiny):
    other = train(tiny(kind="cnn", epochs=1, width=0.125), tmp_path / "wider")
    with pytest.raises(SpikeportError, match=r"is squeezenet-p of width 0.125 .*, .* is squeezenet-p of width 0.0625"):
        report(runs / "snn", other, tmp_path / "report")
    other = train(tiny(kind="cnn", epochs=1), tmp_path / "named")
    text = json.loads((other.path / "model.json").read_text())
    text["data"]["class_names"] = [f"digit {k}" for k in range(10)]
    (other.path / "model.json").write_text(json.dumps(text))
    with pytest.raises(SpikeportError, match="the class_names of its data is .*digit 0"):
        report(runs / "snn", other.path, tmp_path / "report")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("loihi/compatibility.json", "5"),
        ("loihi/compatibility.json", '{"layers": 3}'),
        ("nir/certificate.json", "null"),
        ("nir/certificate.json", "{}"),
        ("nir/certificate.json", {"witnesses": 0}),
        ("nir/certificate.json", {"samples": "all"}),
        ("nir/certificate.json", {"sha256": "0"}),
        ("onnx/record.json", '{"accuracy": "high"}'),
        ("onnx/record.json", {"int8": {"x": 1}}),
        ("onnx/record.json", {"weights_sha256": "0"}),
    ],
)
def test_damaged_files_beside_a_record_are_named(runs, tmp_path, file, content):
    folder, cnn = copy(runs, tmp_path, SpikeRecord.load(runs / "snn/loihi/fixed.npz")), tmp_path / "cnn"
    shutil.copytree(runs / "cnn", cnn)
    damaged = (cnn if file.startswith("onnx") else folder) / file
    if isinstance(content, dict):
        shutil.copytree(runs / "snn/nir", folder / "nir")
        content = json.dumps(json.loads(damaged.read_text()) | content)
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_text(content)
    with pytest.raises(SpikeportError, match=f"{file}:? |model.nir: not the file its certificate was made for"):
        report(folder, cnn)
    assert not (folder / "report").exists()


def test_the_command_passes_its_options_on(runs, tmp_path, capsys, monkeypatch):
    from spikeport.main import app

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["spikeport", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app()
        return int(end.value.code or 0)

    out = tmp_path / "report"
    chosen = ("--model", "horowitz", "--model", "lemaire", "--sample", 2, "--cross-check", "--out", out)
    assert run(runs / "snn", "--against", runs / "cnn", *chosen) == 0
    content = json.loads((out / "report.json").read_text())
    assert list(content["energy"]) == ["horowitz", "lemaire"]
    assert content["network"]["sample"] == 2
    assert {check["unexplained"] for check in content["cross_check"]} == {0}
    assert "0 unexplained" in capsys.readouterr().out
    assert run(runs / "snn", "--model", "joules", "--out", tmp_path / "none") == 2
    assert "unknown energy model 'joules'; available: horowitz" in capsys.readouterr().err

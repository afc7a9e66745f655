"""The verbs of the command line, from training to the report."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nir
import numpy as np
import pytest
import typer

from spikeport import load_run
from spikeport.core import TrainConfig
from spikeport.main import cli
from spikeport.profiling.page import number
from spikeport.targets.record import SpikeRecord


def verbs() -> list[tuple[str, ...]]:
    found = []
    for name, command in typer.main.get_command(cli).commands.items():
        inner = getattr(command, "commands", None)
        found += [(name, sub) for sub in inner] if inner else [(name,)]
    return found


def test_every_verb_of_the_design_is_there():
    names = {" ".join(verb) for verb in verbs()}
    wanted = {"demo", "train", "export", "check", "simulate", "report", "lava setup", "lava status"}
    wanted |= {f"study {study}" for study in ("ablation", "search", "compare", "seeds", "paper")}
    assert wanted | {"models", "datasets", "targets"} <= names


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_help_has_an_example_that_calls_the_verb(works, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "200")
    text = works(*verb, "--help")
    assert re.search(r"Examples?:", text)
    assert f"spikeport {' '.join(verb)}" in text.split("Example", 1)[1]


def test_models_as_json(works):
    rows = {(row["name"], row["kind"]): row for row in json.loads(works("models", "--json"))}
    assert set(rows) >= {(name, kind) for name in ("squeezenet", "squeezenet-p") for kind in ("cnn", "snn")}
    for name, parameters, macs in (("squeezenet", 736_458, 4_466_848), ("squeezenet-p", 549_114, 4_227_232)):
        assert rows[name, "cnn"]["parameters"] == rows[name, "snn"]["parameters"] == parameters
        assert rows[name, "snn"]["macs"] == macs
        assert rows[name, "cnn"]["macs"] > 8 * macs
        assert all(set(row) == {"name", "kind", "parameters", "macs"} for row in rows.values())


@pytest.mark.parametrize(
    ("verb", "names"),
    [("models", ["squeezenet", "squeezenet-p"]), ("datasets", ["digits", "cifar10"]), ("targets", ["loihi", "onnx"])],
)
def test_listings_name_everything_in_both_forms(works, verb, names):
    text = works(verb)
    assert all(name in text for name in names)
    assert set(names) <= {row["name"] for row in json.loads(works(verb, "--json"))}


def test_training_leaves_a_run_that_python_opens(walked):
    for kind in ("cnn", "snn"):
        run = load_run(walked / kind)
        assert run.kind == kind
        assert run.results["epochs"] == 1


def test_training_takes_a_file_of_settings_and_flags_override_it(works, tmp_path):
    (tmp_path / "settings.toml").write_text('kind = "cnn"\nwidth = 0.0625\nepochs = 3\nkeep = [4]\nseed = 9\n')
    works("train", "--config", tmp_path / "settings.toml", "--epochs", 1, "--keep", "4,6", "--out", tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert (run.kind, run.spec.width, run.spec.keep, run.results["epochs"]) == ("cnn", 0.0625, (4, 6), 1)
    assert "seed = 9\n" in (tmp_path / "run" / "config.toml").read_text()


def test_an_export_says_what_does_not_fit_its_chip(walked, works, tmp_path):
    told = works("export", walked / "snn", "--target", "loihi", "--chip", "loihi1", "--out", tmp_path)
    assert "does not fit: input: graded spike bits 8 exceeds 0 of Loihi 1" in told
    told = works("export", walked / "snn", "--target", "loihi", "--out", tmp_path, "--overwrite")
    assert "does not fit" not in told


def test_an_export_to_another_folder_leaves_the_run_as_it_is(walked, works, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.toml", "model.json", "weights.safetensors"):
        shutil.copy(walked / "snn" / name, run)
    works("export", run, "--target", "loihi", "--out", tmp_path / "there")
    assert {path.name for path in run.iterdir()} == {"config.toml", "model.json", "weights.safetensors"}
    written = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*.*")}
    assert written == {"nir/model.nir", "nir/certificate.json", "loihi/program.npz", "loihi/compatibility.json"}


def test_both_forms_of_an_onnx_file_are_told_of(walked, works, tmp_path):
    run = shutil.copytree(walked / "cnn", tmp_path / "cnn")
    told = works("simulate", run, "--target", "onnx", "--samples", 4, "--overwrite")
    assert re.fullmatch(r"onnx: accuracy [01]\.\d+ on 4 images, [\d.]+ ms per image \(batch 1, median\)\n", told)
    assert "model.int8.onnx: the 8-bit form" in works("export", run, "--target", "onnx", "--int8", "--overwrite")
    told = works("simulate", run, "--target", "onnx", "--samples", 4, "--overwrite")
    assert re.findall(r"(\w+): accuracy", told) == ["onnx", "int8"]


def test_images_that_a_data_set_does_not_have_are_told_of(walked, spikeport, tmp_path):
    record = ("--target", "onnx", "--samples", 361, "--out", tmp_path / "r.json")
    with pytest.warns(RuntimeWarning, match="361 samples asked for; digits has 360 test images"):
        outcome = spikeport("simulate", walked / "cnn", *record)
    assert "on 360 images" in outcome.out


def test_a_run_is_trained_on_in_integers_with_the_settings_it_had(walked, works, tmp_path):
    out = tmp_path / "chip"
    works("train", "--from", walked / "snn", "--target", "loihi", "--epochs", 1, "--lr", 1e-4, "--out", out)
    assert load_run(out).spec == load_run(walked / "snn").spec
    works("export", out, "--target", "loihi")
    assert "accuracy" in works("simulate", out, "--target", "loihi", "--samples", 4)


@pytest.mark.parametrize(
    ("augment", "milestones", "saved"),
    [(" crop, flip", "1, 3", ("crop", "flip", 1, 3)), ("none", "", ()), ("", "none", ())],
)
def test_lists_may_have_spaces_or_nothing(works, tmp_path, augment, milestones, saved):
    small = ("--kind", "cnn", "--width", 0.0625, "--keep", " 4", "--train-images", 60, "--epochs", 1)
    works("train", *small, "--augment", augment, "--milestones", milestones, "--out", tmp_path / "run")
    settings = TrainConfig.read(tmp_path / "run" / "config.toml")
    assert (*settings["augment"], *settings["milestones"]) == saved
    assert settings["keep"] == [4]


def test_a_run_resumes_after_its_start_is_gone(works, tmp_path):
    small = ("--width", 0.0625, "--keep", "4", "--train-images", 60, "--schedule", "constant", "--epochs")
    works("train", "--kind", "cnn", *small, 1, "--out", tmp_path / "cnn")
    command = (
        "train",
        "--kind",
        "snn",
        "--from",
        tmp_path / "cnn",
        "--schedule",
        "constant",
        "--out",
        tmp_path / "snn",
    )
    works(*command, "--epochs", 1)
    shutil.rmtree(tmp_path / "cnn")
    works(*command, "--epochs", 2, "--resume")
    assert load_run(tmp_path / "snn").results["epochs"] == 2


def test_another_surrogate_has_its_own_steepness(works, tmp_path):
    (tmp_path / "settings.toml").write_text("width = 0.0625\nkeep = [4]\nepochs = 1\ntrain_images = 60\nalpha = 4.0\n")
    command = ("train", "--config", tmp_path / "settings.toml", "--out")
    works(*command, tmp_path / "same", "--surrogate", "atan")
    works(*command, tmp_path / "other", "--surrogate", "sigmoid")
    works("train", "--from", tmp_path / "same", "--surrogate", "exponential", "--epochs", 1, "--out", tmp_path / "next")
    alphas = [load_run(tmp_path / name).spec.twin.alpha for name in ("same", "other", "next")]
    assert alphas == [4.0, None, None]


def test_the_saved_settings_resume_the_run(works, tmp_path):
    run = tmp_path / "run"
    small = ("--kind", "cnn", "--width", 0.0625, "--keep", "4", "--schedule", "constant")
    works("train", *small, "--epochs", 1, "--out", run)
    works("train", "--config", run / "config.toml", "--epochs", 2, "--resume", "--out", run)
    assert load_run(run).results["epochs"] == 2


@pytest.mark.parametrize(
    "file",
    [
        "cnn/onnx/model.onnx",
        "cnn/onnx/certificate.json",
        "cnn/onnx/record.json",
        "snn/nir/model.nir",
        "snn/nir/certificate.json",
        "snn/loihi/program.npz",
        "snn/loihi/compatibility.json",
        "snn/loihi/fixed.npz",
        "snn/report/index.html",
        "snn/report/report.json",
        "snn/report/layers.csv",
    ],
)
def test_every_step_leaves_its_file_in_its_place(walked, file):
    assert (walked / file).stat().st_size > 0


def test_no_temporary_file_stays(walked):
    assert not list(walked.rglob(".*"))


def test_certificates_say_that_every_reader_agrees(walked):
    for file in ("cnn/onnx/certificate.json", "snn/nir/certificate.json"):
        certificate = json.loads((walked / file).read_text())
        assert certificate["passed"]
        assert certificate["samples"] == 64
        assert all(witness["status"].startswith("agrees") for witness in certificate["witnesses"])


def sums(walked: Path) -> dict[str, float]:
    with (walked / "snn/report/layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    numeric = [name for name in rows[0] if name not in ("layer", "kind", "neurons_layer", "note")]
    return {name: sum(float(row[name] or 0) for row in rows) for name in numeric}


def test_sums_of_the_csv_are_the_totals_of_the_json(walked):
    totals = json.loads((walked / "snn/report/report.json").read_text())["totals"]
    found = sums(walked)
    assert set(totals) == {"training", "fixed"}
    for witness, total in totals.items():
        for quantity in ("acs", "energy_nj", "spikes"):
            assert found[f"{quantity}_{witness}"] == pytest.approx(total[quantity], rel=1e-12)
        assert found["macs"] == pytest.approx(total["macs"], rel=1e-12)
        assert total["spikes"] > 0


def test_the_report_counts_what_the_record_holds(walked):
    record = SpikeRecord.load(walked / "snn/loihi/fixed.npz")
    content = json.loads((walked / "snn/report/report.json").read_text())
    spikes = sum(int(s.sum()) for s in record.spikes.values()) / record.samples
    graded = sum(row["graded_events"].get("fixed", 0.0) for row in content["rows"])
    events = sum(int(e.sum()) for e in record.events.values()) / record.samples
    assert content["totals"]["fixed"]["spikes"] == pytest.approx(spikes)
    assert content["totals"]["fixed"]["acs"] + graded == pytest.approx(events)
    assert content["engines"]["fixed"] | {"details": None} == {
        "samples": 8,
        "wraps": 0,
        "saturations": 0,
        "details": None,
    }


def test_energy_is_horowitz_on_the_counts(walked):
    for total in json.loads((walked / "snn/report/report.json").read_text())["totals"].values():
        assert total["energy_nj"] == pytest.approx((0.9 * total["acs"] + 4.6 * total["macs"]) / 1000)


def test_the_page_shows_the_totals_and_asks_for_nothing_outside(walked):
    page = (walked / "snn/report/index.html").read_text()
    totals = json.loads((walked / "snn/report/report.json").read_text())["totals"]
    for total in totals.values():
        assert number(total["acs"]) in page
        assert number(total["energy_nj"]) in page
    assert not re.search(r"<script[^>]+src=|@import|url\(['\"]?http", page)
    assert not re.search(r"\b(?:src|href)=[\"'](?!#|data:)", page.replace("xlink:href=", "href="))


def test_the_report_as_json_is_the_file(walked, works, tmp_path):
    printed = json.loads(works("report", walked / "snn", "--against", walked / "cnn", "--out", tmp_path, "--json"))
    assert printed == json.loads((tmp_path / "report.json").read_text())


def test_a_record_alone_can_be_reported_on(walked, works, tmp_path):
    works("report", walked / "snn/loihi/fixed.npz", "--out", tmp_path / "report")
    totals = json.loads((tmp_path / "report" / "report.json").read_text())["totals"]
    whole = json.loads((walked / "snn/report/report.json").read_text())["totals"]
    assert totals["fixed"]["spikes"] == pytest.approx(whole["fixed"]["spikes"])


def test_loihi_1_takes_a_current_from_the_host(walked, works, tmp_path):
    host = ("--chip", "loihi1", "--input", "host-current")
    works("check", walked / "snn", *host)
    works("export", walked / "snn", "--target", "loihi", *host, "--out", tmp_path)
    assert json.loads((tmp_path / "loihi/compatibility.json").read_text())["input"] == "host-current"
    x, _ = load_run(walked / "snn").samples(4)
    np.save(tmp_path / "x.npy", x)
    program = tmp_path / "loihi/program.npz"
    works("simulate", program, "--target", "loihi", "--input", tmp_path / "x.npy")
    assert SpikeRecord.load(program.with_name("fixed.npz")).samples == 4


def test_own_samples_give_the_record_of_the_data_sets_samples(walked, works, tmp_path):
    x, labels = load_run(walked / "snn").samples(8)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", labels)
    own = ("--input", tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--out", tmp_path / "own.npz")
    works("simulate", walked / "snn/loihi/program.npz", *own)
    a, b = (SpikeRecord.load(file) for file in (tmp_path / "own.npz", walked / "snn/loihi/fixed.npz"))
    assert np.array_equal(a.output_sums, b.output_sums)
    assert a.accuracy == b.accuracy


def test_check_says_that_the_network_fits_and_writes_nothing(walked, works):
    assert json.loads(works("check", walked / "snn", "--target", "loihi", "--json"))["fits"]
    works("check", walked / "snn/nir/model.nir", "--target", "loihi")


def test_a_file_of_another_framework_is_checked_with_its_samples(walked, works, spikeport, tmp_path):
    graph = nir.read(str(walked / "snn/nir/model.nir"), type_check=False)
    graph.metadata.clear()
    nir.write(str(tmp_path / "other.nir"), graph)
    np.save(tmp_path / "x.npy", load_run(walked / "snn").samples(4)[0])
    told = ("--time-steps", 4, "--json")
    outcome = spikeport("check", tmp_path / "other.nir", *told)
    assert outcome.status == 2  # wrong use: nothing was checked
    assert "give real samples with --calibration X.npy" in outcome.err
    told += ("--calibration", tmp_path / "x.npy")
    assert json.loads(works("check", tmp_path / "other.nir", *told))["fits"]
    # Another step in seconds is another decay: here one that the chip does not have.
    outcome = spikeport("check", tmp_path / "other.nir", *told, "--dt", 1e-3)
    assert "at least 1 is needed" in json.loads(outcome.out)["errors"][0]


def test_the_installed_command_and_the_module_are_the_same():
    script = str(Path(sys.executable).with_name("spikeport"))
    for command in ([script], [sys.executable, "-m", "spikeport"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"spikeport \d+\.\d+\.\d+\n", done.stdout)


def test_an_error_reaches_the_shell_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "spikeport", "report", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: [^\n]*no such run folder[^\n]*\n", done.stderr)


def test_a_warning_of_ours_is_one_line_and_others_say_where():
    code = (
        "import atexit, warnings; from spikeport.main import app;"
        "atexit.register(lambda: [warnings.warn('slow', RuntimeWarning), warnings.warn('old', UserWarning)]); app()"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.fullmatch(r"warning: slow\n<string>:1: UserWarning: old\n", done.stderr)


def test_help_does_not_wait_for_torch():
    code = "import sys; sys.argv = ['spikeport', 'train', '--help']\nfrom spikeport.main import app\n"
    code += "try:\n    app()\nfinally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Train a network" in done.stdout


def test_training_begins_without_the_exporter_and_torchs_compiler(tmp_path):
    arguments = ["spikeport", "train", "--dataset", "cifar10", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    code = f"import sys; sys.argv = {arguments!r}\nfrom spikeport.main import app\n"
    code += "try:\n    app()\nfinally:\n    assert 'torch' in sys.modules"
    code += " and not {'spikeport.export', 'torch._dynamo'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["frobnicate"], ["train"], ["train", "--epochs", "many"], ["export"]])
def test_wrong_usage_ends_with_status_2(spikeport, arguments):
    outcome = spikeport(*arguments)
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert "Usage" in outcome.err

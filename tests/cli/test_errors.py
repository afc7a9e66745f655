"""Wrong use and bad input: status 2, a message that says what to do, and nothing written."""

import os
import pickle
import shutil
from pathlib import Path

import nir
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from spikeport.core import ModelSpec, Twin, training
from spikeport.core.runs import WEIGHTS_FILE, save_weights


@pytest.fixture
def runs(walked, tmp_path) -> Path:
    """A copy of the two runs that a test may damage."""
    return Path(shutil.copytree(walked, tmp_path / "runs"))


@pytest.fixture
def fresh(runs) -> Path:
    """The same two runs, trained and nothing else."""
    for name in ("cnn/onnx", "snn/nir", "snn/loihi", "snn/report"):
        shutil.rmtree(runs / name)
    return runs


SMALL = ("--dataset", "digits", "--width", 0.0625, "--epochs", 1)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("unknown model 'resnet'; available: squeezenet", ("--model", "resnet")),
        ("'rnn' is not one of cnn, snn", ("--kind", "rnn")),
        ("unknown data set 'mnist'; available: digits, cifar10", ("--dataset", "mnist")),
        ("cifar10 is not embedded; --data DIR", ("--dataset", "cifar10")),
        ("epochs is 0", ("--epochs", 0)),
        ("tau is 0.5", ("--tau", 0.5)),
        ("momentum is 1.5; it must lie within 0..1", ("--optimizer", "sgd", "--momentum", 1.5)),
        ("keep is 4, 6, 4; name each once", ("--keep", "4,6,4")),
        ("augment is crop, crop; name each once", ("--augment", "crop,crop")),
        ("--keep '4;6': expected whole numbers", ("--keep", "4;6")),
        ("--keep '4,,6': expected whole numbers separated by commas, as 4,6,8,9", ("--keep", "4,,6")),
        ("--milestones 'x': expected whole numbers separated by commas, as 50,100", ("--milestones", "x")),
        ("name at least one", ("--keep", "none")),
        ("augment 'mixup' is not one of crop, flip, cutout", ("--augment", "mixup")),
        ("keep=[1]", ("--keep", "1")),
        ("unknown surrogate 'step'", ("--surrogate", "step")),
        ("none.toml: no such file", ("--config", "none.toml")),
        ("device 'abacus' cannot be used here", ("--device", "abacus")),
        ("no checkpoint to resume from", ("--resume",)),
        ("loss became", ("--lr", 1e30, "--kind", "cnn")),
        ("give one of them", ("--resume", "--overwrite")),
        ("--time-steps has no effect without --kind snn", ("--kind", "cnn", "--time-steps", 4)),
        ("--momentum has no effect without --optimizer sgd", ("--momentum", 0.5)),
        ("--milestones has no effect without --schedule step", ("--schedule", "cosine", "--milestones", "3")),
        ("--loss-weight has no effect without --loss gradient-aware or grad-cam", ("--loss-weight", 0.1)),
        ("--gradient-eps has no effect without --loss gradient-aware", ("--loss", "grad-cam", "--gradient-eps", 1)),
        ("--temperature has no effect without --teacher", ("--temperature", 2)),
        ("--rate-goal has no effect without --kind snn", ("--kind", "cnn", "--rate-goal", 0.1)),
        ("none: no such run folder", ("--from", "none")),
        ("digits is embedded, so", ("--data", "folder")),
    ],
)
def test_training_refuses(refused, tmp_path, message, arguments):
    assert message in refused("train", *SMALL, "--out", tmp_path / "run", *arguments)


def test_bad_settings_are_refused_before_the_table_begins(spikeport, tmp_path):
    outcome = spikeport("train", *SMALL, "--keep", 1, "--out", tmp_path / "run")
    assert (outcome.status, outcome.out) == (2, "")


@pytest.mark.parametrize(
    ("epochs", "told"),
    [(1, "before the first epoch ended, so nothing is kept"), (2, "the same command with --resume goes on")],
)
def test_an_interrupted_training_says_how_to_go_on(spikeport, works, tmp_path, monkeypatch, epochs, told):
    run_epoch = training.run_epoch

    def interrupted(*arguments):
        if arguments[-1].epoch == epochs:
            raise KeyboardInterrupt
        return run_epoch(*arguments)

    command = ("train", *SMALL[:-1], 2, "--out", tmp_path / "run")
    monkeypatch.setattr(training, "run_epoch", interrupted)
    outcome = spikeport(*command)
    assert (outcome.status, outcome.err) == (130, f"interrupted; {told}\n")
    assert (tmp_path / "run").exists() == (epochs == 2)
    monkeypatch.undo()
    if epochs == 2:
        works(*command, "--resume")


def test_any_interrupted_command_says_so(spikeport, monkeypatch):
    monkeypatch.setattr("spikeport.targets.simulate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    outcome = spikeport("simulate", "runs/snn")
    assert (outcome.status, outcome.err) == (130, "interrupted\n")


def test_training_refuses_damaged_cifar_files(refused, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(os.system))
    message = refused("train", "--dataset", "cifar10", "--data", tmp_path, "--out", tmp_path / "run")
    assert "data_batch_1: the pickle asks for posix.system" in message


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("export", "cnn", "--target", "nir"), "spikeport export {cnn} --target onnx"),
        (("export", "cnn", "--target", "loihi", "--out", "new.npz"), "spikeport export {cnn} --target onnx"),
        (("export", "snn", "--target", "onnx"), "spikeport export {snn} --target nir"),
        (("check", "cnn", "--target", "loihi"), "spikeport export {cnn} --target onnx"),
        (("simulate", "cnn", "--target", "loihi"), "spikeport simulate {cnn} --target onnx"),
        (("simulate", "snn", "--target", "onnx"), "spikeport simulate {snn} --target loihi"),
        (("report", "cnn"), "give the SNN's run, and this one with --against"),
        (("report", "snn", "--against", "snn", "--out", "r"), "give the run of the CNN twin"),
    ],
)
def test_a_network_of_the_wrong_kind_is_refused_with_the_command_to_use(refused, fresh, walked, arguments, remedy):
    source = walked if arguments[0] == "report" else fresh
    paths = {kind: source / kind for kind in ("cnn", "snn")}
    given = [paths.get(a, fresh / a if a in ("r", "new.npz") else a) for a in arguments]
    assert remedy.format(**paths) in refused(*given)


def test_a_path_that_is_no_utf8_is_refused_before_anything_is_done(refused, tmp_path):
    message = refused("train", "--dataset", "digits", "--overwrite", "--out", f"{tmp_path}/x\udcff")
    assert "x\\udcff' is no UTF-8; rename that file or folder" in message


def test_brackets_in_names_are_no_markup(spikeport, tmp_path, runs):
    for name in ("a[b]", "a[", "[bold]"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(runs / "snn/nir/model.nir", folder / "model.nir")
        outcome = spikeport("check", folder / "model.nir", "--target", "loihi")
        assert name in outcome.out, outcome.err


@pytest.mark.parametrize("verb", ["export", "check", "simulate", "report"])
def test_a_missing_run_folder_is_named(refused, tmp_path, verb):
    target = () if verb == "report" else ("--target", "loihi")
    message = refused(verb, tmp_path / "none", *target)
    assert f"{tmp_path / 'none'}: " in message
    assert "run folder" in message


@pytest.mark.parametrize("verb", ["export", "check", "simulate"])
def test_an_unknown_target_is_refused_with_the_known_ones(refused, fresh, verb):
    message = refused(verb, fresh / "snn", "--target", "tpu")
    assert "unknown target 'tpu'; available: loihi" in message


def test_an_unknown_engine_is_refused_with_the_known_ones(refused, runs):
    message = refused("simulate", runs / "snn", "--engine", "analog", "--overwrite")
    assert "no engine 'analog'; available: fixed, lava" in message


def test_branches_have_no_net_file(refused, runs, tmp_path):
    message = refused("export", runs / "snn", "--target", "loihi", "--net", "--out", tmp_path / "new")
    assert "a .net file holds a chain of layers only" in message


def test_a_network_that_is_refused_leaves_no_file_in_its_run(refused, fresh):
    message = refused("export", fresh / "snn", "--target", "loihi", "--net")
    assert "a .net file holds a chain of layers only" in message


@pytest.mark.parametrize("option", [("--net",), ("--input", "host-current")])
def test_options_of_loihi_are_refused_elsewhere(refused, runs, tmp_path, option):
    message = refused("export", runs / "snn", "--target", "nir", "--out", tmp_path / "new", *option)
    assert "--input and --net belong to --target loihi" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "snn", "--target", "nir", "--time-steps", 9), "--time-steps belongs to"),
        (("export", "snn", "--target", "loihi", "--weights", "w.pt"), "--weights and --input-shape belong to"),
        (("export", "snn", "--target", "loihi", "--input-shape", "1,8,8"), "--weights and --input-shape belong to"),
        (("export", "snn", "--target", "loihi", "--dt", 0.001), "--dt belongs to foreign NIR files"),
        (("export", "snn", "--target", "loihi", "--calibration", "x.npy"), "knows the range of its input"),
        (("export", "cnn", "--target", "onnx", "--chip", "loihi1"), "--chip, --input and --net belong to"),
        (("check", "snn", "--time-steps", 9), "--time-steps is 9, the file itself says 4"),
        (("check", "snn/nir/model.nir", "--time-steps", 9), "--time-steps is 9, the file itself says 4"),
        (("export", "snn/nir/model.nir", "--target", "loihi", "--time-steps", 9), "the file itself says 4"),
        (("export", "snn/nir/model.nir", "--target", "nir"), "is a file; `spikeport export` turns a run folder"),
    ],
)
def test_options_that_do_not_apply_are_refused(refused, runs, arguments, message):
    given = [runs / a if str(a).startswith(("snn", "cnn")) else a for a in arguments]
    new = ("--out", runs / "new") if arguments[0] == "export" else ()
    assert message in refused(*given, *new)


def test_an_unknown_chip_is_refused_with_the_known_ones(refused, runs):
    message = refused("check", runs / "snn", "--chip", "loihi3")
    assert "loihi3" in message
    assert "loihi1, loihi2" in message


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("simulate", "snn", "--target", "loihi"), "spikeport export {snn} --target loihi"),
        (("simulate", "cnn", "--target", "onnx"), "spikeport export {cnn} --target onnx"),
        (("report", "snn"), "spikeport simulate {snn} --target loihi"),
    ],
)
def test_a_step_left_out_is_named_by_its_command(refused, fresh, arguments, remedy):
    paths = {kind: fresh / kind for kind in ("cnn", "snn")}
    assert remedy.format(**paths) in refused(*(paths.get(a, a) for a in arguments))


@pytest.mark.parametrize(("kind", "target"), [("snn", "nir"), ("cnn", "onnx")])
def test_a_run_is_not_exported_for_images_of_another_size(refused, fresh, kind, target):
    np.save(fresh / "x.npy", np.random.default_rng(0).random((4, 1, 8, 16)))
    message = refused("export", fresh / kind, "--target", target, "--calibration", fresh / "x.npy")
    assert f"samples of shape [4, 1, 8, 16]; {fresh / kind} was trained on [N, 1, 16, 16]" in message


def test_samples_that_a_check_has_no_use_for_are_refused(refused, fresh):
    np.save(fresh / "x.npy", np.ones((4, 1, 16, 16)))
    message = refused("check", fresh / "snn", "--calibration", fresh / "x.npy")
    assert "says the range of its input itself; leave the calibration samples out" in message


def test_a_report_does_not_replace_what_is_no_report(refused, walked, tmp_path):
    run = shutil.copytree(walked / "snn", tmp_path / "run")
    message = refused("report", walked / "snn", "--out", run, "--overwrite")
    assert f"{run}: a run folder, which has a layers.csv of its own; name another folder" in message
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "layers.csv").write_text("mine")
    assert "layers.csv already exists" in refused("report", walked / "snn", "--out", tmp_path / "other")


def test_a_file_that_cannot_be_written_is_named_and_not_its_temporary_one(refused, walked, tmp_path):
    message = refused("simulate", walked / "snn", "--samples", 1, "--out", "/proc/record.npz")
    assert "/proc/record.npz" in message
    assert "/proc/.record-" not in message


@pytest.mark.parametrize("samples", [0, -3])
def test_zero_samples_are_refused(refused, runs, samples):
    out = ("--samples", samples, "--overwrite")
    assert "at least 1 is needed" in refused("simulate", runs / "snn", "--target", "loihi", *out)
    assert "at least 1 is needed" in refused("simulate", runs / "cnn", "--target", "onnx", *out)


DAMAGE = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"this is no such file\n" * 20,
    "cut": lambda whole: whole[: len(whole) // 2],
    "last bytes": lambda whole: whole[:-2],
    "head": lambda whole: b"\0" * 64 + whole[64:],
    "pickle": lambda whole: pickle.dumps(os.getcwd),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("snn/nir/model.nir", ("export", "{file}", "--target", "loihi")),
        ("snn/nir/model.nir", ("check", "{file}", "--target", "loihi")),
        ("cnn/onnx/model.onnx", ("simulate", "{runs}/cnn", "--target", "onnx", "--overwrite")),
        ("snn/loihi/program.npz", ("simulate", "{runs}/snn", "--overwrite")),
        ("snn/loihi/program.npz", ("report", "{runs}/snn", "--overwrite")),
        ("snn/loihi/fixed.npz", ("report", "{runs}/snn", "--overwrite")),
        ("snn/weights.safetensors", ("export", "{runs}/snn", "--target", "nir", "--overwrite")),
        ("snn/model.json", ("report", "{runs}/snn", "--overwrite")),
    ],
)
def test_a_damaged_file_is_named(refused, runs, file, arguments, damage):
    path = runs / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert str(path) in refused(*(a.format(file=path, runs=runs) for a in arguments))


def test_a_cnn_with_other_weights_than_its_onnx_file_is_refused(refused, runs):
    path = runs / "cnn/weights.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    message = refused("simulate", runs / "cnn", "--target", "onnx", "--overwrite")
    assert "exported from other weights than the run has now" in message


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("file", "verb"), [("program.npz", "simulate"), ("fixed.npz", "report")])
def test_a_file_with_changed_bytes_in_it_is_named(refused, runs, file, verb, place):
    path = runs / "snn/loihi" / file
    whole = bytearray(path.read_bytes())
    begin = int(place * len(whole))
    whole[begin : begin + 64] = b"\xff" * 64
    path.write_bytes(whole)
    assert str(path) in refused(verb, runs / "snn", "--overwrite")


@pytest.mark.parametrize("target", ["nir", "loihi"])
def test_weights_that_are_not_finite_are_refused(refused, fresh, target):
    weights = load_file(fresh / "snn" / WEIGHTS_FILE)
    weights["stem.conv.weight"][0] = float("nan")
    save_file(weights, fresh / "snn" / WEIGHTS_FILE)
    assert "stem.conv.weight holds NaN or infinity" in refused("export", fresh / "snn", "--target", target)


def test_weights_of_another_model_are_refused(refused, fresh):
    other = ModelSpec(twin=Twin("cnn"), in_channels=1, image_size=16, width=0.25)
    save_weights(other.build(), fresh / "cnn" / WEIGHTS_FILE)
    assert "weights of another model" in refused("export", fresh / "cnn", "--target", "onnx")


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("export", "cnn", "--target", "onnx"), "cnn/onnx/model.onnx"),
        (("export", "snn", "--target", "nir"), "snn/nir/model.nir"),
        (("export", "snn", "--target", "loihi"), "snn/loihi/program.npz"),
        (("simulate", "cnn", "--target", "onnx", "--samples", 2), "cnn/onnx/record.json"),
        (("simulate", "snn", "--samples", 2), "snn/loihi/fixed.npz"),
        (("report", "snn"), "snn/report/index.html"),
        (("train", *SMALL, "--out", "snn"), "snn"),
    ],
)
def test_existing_output_is_refused_and_replaced_when_asked(refused, works, runs, arguments, file):
    given = [runs / a if a in ("cnn", "snn") else a for a in arguments]
    message = refused(*given)
    assert f"{runs / file} already exists" in message
    assert "--overwrite" in message
    works(*given, "--overwrite")


@pytest.mark.parametrize(
    ("message", "x"),
    [
        ("input has shape", np.zeros((2, 3, 16, 16))),
        ("input has shape", np.zeros((16, 16))),
        ("zero samples", np.zeros((0, 1, 16, 16))),
        ("NaN or infinity", np.full((2, 1, 16, 16), np.nan)),
        ("input reaches 1e+06", np.full((2, 1, 16, 16), 1e6)),
        ("no array of real numbers", np.array([["a"]])),
        ("not a NumPy array file", np.array([None])),
        ("holds one number", np.array(3.0)),
    ],
)
def test_samples_that_do_not_suit_are_refused(refused, runs, tmp_path, message, x):
    np.save(tmp_path / "x.npy", x)
    assert message in refused("simulate", runs / "snn", "--input", tmp_path / "x.npy", "--overwrite")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_onnx_runtime_is_not_asked_about_samples_that_are_no_numbers(refused, runs, tmp_path, value):
    x = np.zeros((2, 1, 16, 16))
    x[1, 0, 3, 4] = value
    np.save(tmp_path / "x.npy", x)
    command = ("simulate", runs / "cnn", "--target", "onnx", "--input", tmp_path / "x.npy", "--overwrite")
    assert "NaN, infinity or values beyond float32" in refused(*command)


def test_time_steps_of_a_foreign_file_are_at_least_one(refused, runs, tmp_path):
    graph = nir.read(str(runs / "snn/nir/model.nir"), type_check=False)
    graph.metadata.clear()
    nir.write(str(tmp_path / "foreign.nir"), graph)
    np.save(tmp_path / "x.npy", np.ones((2, 1, 16, 16)))
    options = ("--target", "loihi", "--calibration", tmp_path / "x.npy", "--out", tmp_path / "new")
    for steps in (0, -1):
        message = refused("export", tmp_path / "foreign.nir", *options, "--time-steps", steps)
        assert f"time_steps is {steps}; a whole number from 1 to 65536 is needed" in message
    np.save(tmp_path / "x.npy", 3.0)
    assert "holds one number" in refused("export", tmp_path / "foreign.nir", *options, "--time-steps", 4)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("none.npy: no such file", ("--input", "{x}/none.npy")),
        ("labels have shape [3]; 2 samples need [2]", ("--input", "{x}/x.npy", "--labels", "{x}/y.npy")),
        ("labels are float64; classes are whole numbers", ("--input", "{x}/x.npy", "--labels", "{x}/half.npy")),
        ("label -1 names no class; the network has 0 to 9", ("--input", "{x}/x.npy", "--labels", "{x}/below.npy")),
        ("label 10 names no class", ("--input", "{x}/x.npy", "--labels", "{x}/above.npy")),
        ("labels without samples", ("--labels", "{x}/y.npy")),
        ("spike maps of -1 samples asked for; 0 keeps none", ("--rasters", -1)),
        ("a timeout of -1 s; give more than 0 s", ("--engine", "lava", "--timeout", -1)),
        ("a timeout of nan s; give more than 0 s", ("--engine", "lava", "--timeout", "nan")),
        ("--convolution and --timeout belong to Lava", ("--timeout", 0)),
        ("--convolution and --timeout belong to Lava", ("--convolution", "stock")),
        ("--convolution and --timeout belong to Lava", ("--timeout", 3)),
        ("--processes belongs to the fixed engine", ("--engine", "lava", "--processes", 2)),
        ("0 processes asked for; at least 1 is needed", ("--processes", 0)),
    ],
)
def test_options_that_do_not_fit_together_are_refused(refused, runs, tmp_path, message, arguments):
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 16, 16)))
    for name, labels in (("y", np.zeros(3, int)), ("half", [0, 0.5]), ("below", [0, -1]), ("above", [10, 0])):
        np.save(tmp_path / f"{name}.npy", labels)
    given = [str(a).format(x=tmp_path) for a in arguments]
    assert message in refused("simulate", runs / "snn", "--overwrite", *given)


@pytest.mark.parametrize(("option", "name"), [("--rasters", "rasters"), ("--processes", "processes")])
def test_options_of_loihi_are_not_swallowed_by_onnx(refused, runs, option, name):
    message = refused("simulate", runs / "cnn", "--target", "onnx", "--overwrite", option, 3)
    assert name in message
    assert "leave" in message


@pytest.mark.parametrize("seconds", [-1, 0, "nan", "inf"])
def test_an_inference_takes_some_time(refused, runs, seconds):
    message = refused("report", runs / "snn", "--inference-time", seconds, "--overwrite")
    assert "give a finite number of seconds above 0" in message


def test_an_inference_that_no_energy_model_takes_is_refused(refused, runs):
    command = ("report", runs / "snn", "--inference-time", 1, "--overwrite")
    assert "has no use: energy model loihi1: Loihi 1 cannot run this program" in refused(*command)
    assert "has no use: energy model loihi1 is not shown" in refused(*command, "--model", "horowitz")


def test_a_missing_program_is_to_be_exported(refused, tmp_path):
    assert "is written by `spikeport export`" in refused("simulate", tmp_path / "program.npz")


def test_a_program_is_not_taken_for_a_record_nor_a_record_for_a_program(refused, runs):
    files = runs / "snn/loihi"
    assert "not a spike record (it is a Loihi program)" in refused("report", files / "program.npz")
    np.save(runs / "x.npy", np.zeros((1, 1, 16, 16)))
    arguments = ("--input", runs / "x.npy", "--out", runs / "new.npz")
    assert "not a Loihi program (it is a spike record)" in refused("simulate", files / "fixed.npz", *arguments)
    assert "x.npy: not a Loihi program (no whole .npz archive)" in refused("simulate", runs / "x.npy", *arguments)


def test_a_folder_is_not_taken_for_a_file(refused, runs):
    (runs / "folder").mkdir()
    message = refused("simulate", runs / "snn", "--samples", 1, "--out", runs / "folder", "--overwrite")
    assert f"{runs / 'folder'}: Is a directory; a file is wanted there; name another" in message


def test_a_program_without_samples_asks_for_them(refused, runs):
    message = refused("simulate", runs / "snn/loihi/program.npz", "--out", runs / "new.npz")
    assert "give its samples with --input" in message


def test_a_record_of_another_program_is_refused(refused, works, runs):
    (runs / "snn/loihi/fixed.npz").unlink()
    works("train", *SMALL, "--seed", 1, "--out", runs / "other")
    works("export", runs / "other", "--target", "loihi")
    works("simulate", runs / "other", "--samples", 2)
    shutil.copy(runs / "other/loihi/fixed.npz", runs / "snn/loihi/fixed.npz")
    assert "the fixed record is of another program" in refused("report", runs / "snn", "--overwrite")


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "{runs}/snn", "--target", "nir", "--out", "{runs}/file/model.nir"),
        ("export", "{runs}/snn", "--target", "loihi", "--out", "{runs}/file/program.npz"),
        ("export", "{runs}/cnn", "--target", "onnx", "--out", "{runs}/file/model.onnx"),
        ("simulate", "{runs}/snn", "--samples", "1", "--out", "{runs}/file/record.npz"),
        ("report", "{runs}/snn", "--out", "{runs}/file"),
        ("train", *SMALL, "--out", "{runs}/file/run"),
    ],
)
def test_an_output_below_a_file_is_refused(refused, runs, arguments):
    (runs / "file").write_text("no folder")
    message = refused(*(str(a).format(runs=runs) for a in arguments))
    assert f"cannot be made: {runs / 'file'} is a file; name another folder" in message

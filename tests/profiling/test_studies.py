"""Studies: what they define, what they refuse, and the table, the frontier and the twins they end in."""

import csv
import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import optuna
import pytest
import torch
from optuna.trial import TrialState

from spikeport.core import SpikeportError, TrainConfig, load_run, train
from spikeport.core.config import laid_over
from spikeport.core.data import load_dataset
from spikeport.core.models import MODELS
from spikeport.profiling.studies import (
    SCHEDULES,
    Search,
    Space,
    Study,
    ablation_study,
    compare_study,
    run_search,
    run_study,
    running,
    search,
    seeds_study,
    twins,
)
from spikeport.profiling.studies.pareto import frontier
from spikeport.profiling.studies.results import write_results
from spikeport.profiling.studies.study import TRIALS, read_study
from spikeport.profiling.studies.table import Row
from spikeport.profiling.studies.twins import PICTURE, class_errors, side_by_side


def test_an_ablation_has_the_papers_nine_schedules_and_takes_others():
    nine = ablation_study(TrainConfig(seed=5), seeds=2)
    assert {name: row.keep for name, row in nine.rows.items()} == SCHEDULES
    assert len(nine.trials) == 18
    assert {config.seed for config in nine.trials.values()} == {5, 6}
    own = ablation_study(TrainConfig(), ("ref-1", "9,2"))
    assert {name: row.keep for name, row in own.rows.items()} == {"ref-1": (4, 6, 8, 9), "fire-2-9": (2, 9)}


def test_a_comparison_has_every_model_kind_and_data_set():
    study = compare_study(TrainConfig(), datasets={"digits": None, "cifar10": "folder"})
    assert len(study.rows) == 2 * len(MODELS) * 2
    row = study.rows["cifar10-mixnet-cnn"]
    assert (row.dataset, row.data, row.model, row.kind) == ("cifar10", "folder", "mixnet", "cnn")


@pytest.mark.parametrize(
    ("message", "settings", "schedules"),
    [
        (r"keep=\[\].*name at least one", {}, ("",)),
        (r"keep=\[4, 10\]: SqueezeNet has the Fire modules", {}, ("4,10",)),
        ("schedule 'head-9': not one of full, head-1", {}, ("head-9",)),
        ("schedule fire-4-6 is there twice; name each once", {}, ("4,6", "6,4")),
        ("--keep names Fire modules; mixnet has none", {"model": "mixnet"}, ("ref-1",)),
        ("cifar10 is not embedded", {"dataset": "cifar10"}, ()),
        ("0 seeds", {}, None),
    ],
)
def test_a_study_that_cannot_be_trained_is_refused_before_it_starts(tmp_path, message, settings, schedules):
    base = TrainConfig(**({"dataset": "digits", "width": 0.0625} | settings))
    with pytest.raises(SpikeportError, match=message):
        run_study(ablation_study(base, schedules or (), seeds=0 if schedules is None else 1), tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("message", "space"),
    [
        ("the range 0.01:0.001 of lr is empty", {"lr": (1e-2, 1e-3)}),
        ("the range 0.0:1.0 of v_threshold is empty", {"v_threshold": (0.0, 1.0)}),
        ("the range of tau begins at 0.5; the time constant is at least 1 step", {"tau": (0.5, 2.0)}),
        ("no surrogate to choose from", {"surrogates": ()}),
        (
            "the search space is empty",
            {"lr": (1e-3, 1e-3), "tau": (2, 2), "v_threshold": (1, 1), "surrogates": ("atan",)},
        ),
    ],
)
def test_an_empty_search_space_is_refused(message, space):
    with pytest.raises(SpikeportError, match=message):
        Space(**space)


def test_a_cnn_has_nothing_to_search_but_its_learning_rate(tiny):
    with pytest.raises(SpikeportError, match="a CNN has no tau"):
        Search(tiny(kind="cnn"), Space())
    Search(tiny(kind="cnn"), Space(tau=(2, 2), v_threshold=(1, 1), surrogates=("atan",)))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/at/all.db", "sqlite:////nowhere/at/all.db cannot be used .*unable to open"),
        ("postgresql://me:secret@localhost:1/x", r"postgresql://me:\*\*\*@localhost:1/x cannot be used"),
        ("nonsense", r"\(not a database URL"),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(tiny, tmp_path, url, message):
    with pytest.raises(SpikeportError, match=message) as caught:
        run_search(Search(tiny(), Space(), storage=url), tmp_path / "study", 2)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "study").exists()


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory):
    """A finished study: a CNN and its twin, two seeds."""
    study = compare_study(tiny(epochs=1), models=("squeezenet",), seeds=2)
    folder = tmp_path_factory.mktemp("studies") / "study"
    run_study(study, folder)
    return study, folder, write_results(study, folder)


def test_the_table_holds_what_the_run_folders_hold(compared):
    study, folder, rows = compared
    with (folder / "table.csv").open() as file:
        table = {line["row"]: line for line in csv.DictReader(file)}
    assert list(table) == list(study.rows) == [row.name for row in rows]
    for row in rows:
        results = [json.loads((folder / TRIALS / f"{row.name}-seed{k}" / "model.json").read_text()) for k in (0, 1)]
        accuracies = torch.tensor([r["results"]["test_accuracy"] for r in results], dtype=torch.float64)
        line = table[row.name]
        assert float(line["test_accuracy_mean"]) == pytest.approx(float(accuracies.mean()))
        assert float(line["test_accuracy_deviation"]) == pytest.approx(float(accuracies.std()), abs=1e-12)
        assert (line["trials"], line["finished"], line["kind"]) == ("2", "2", row.config.kind)
        assert (line["rate_mean"] == "") == (row.config.kind == "cnn")
        acs, macs = float(line["acs_mean"]), float(line["macs_mean"])
        assert float(line["energy_nj_mean"]) == pytest.approx((0.9 * acs + 4.6 * macs) / 1e3)
    text = (folder / "table.md").read_text()
    assert text.count("\n") == 2 + len(rows)
    assert all(name in text for name in study.rows)
    assert "<svg" in (folder / "pareto.svg").read_text()


def test_twins_are_set_side_by_side_and_their_errors_add_up(compared):
    _, folder, rows = compared
    (pair,) = (folder / "twins").iterdir()
    assert (pair / PICTURE).stat().st_size > 1000
    with (pair / "errors.csv").open() as file:
        errors = list(csv.DictReader(file))
    images = sum(int(line["images"]) for line in errors)
    by_kind = {row.config.kind: row for row in rows}
    for kind, column in (("cnn", "CNN errs"), ("snn", "SNN errs")):
        wrong = sum(int(line[column]) for line in errors)
        assert 1 - wrong / images == pytest.approx(by_kind[kind].values["test_accuracy"][0])


def test_side_by_side_refuses_what_are_no_twins(compared, tiny, tmp_path):
    _, folder, _ = compared
    cnn, snn = (load_run(folder / TRIALS / f"small-digits-squeezenet-{kind}-seed0") for kind in ("cnn", "snn"))
    with pytest.raises(SpikeportError, match="give a CNN and an SNN, in this order"):
        side_by_side(snn, cnn, tmp_path)
    other = replace(snn, data=replace(snn.data, name="digits"))
    with pytest.raises(SpikeportError, match="give twins of one data set"):
        side_by_side(cnn, other, tmp_path)
    assert not list(tmp_path.iterdir())


def test_twins_are_judged_on_the_data_where_it_lies_now(compared, tmp_path, monkeypatch):
    _, folder, _ = compared
    cnn, snn = (load_run(folder / TRIALS / f"small-digits-squeezenet-{kind}-seed0") for kind in ("cnn", "snn"))
    asked = []
    monkeypatch.setattr(twins, "load_dataset", lambda *given: asked.append(given) or load_dataset(cnn.data.name, None))
    side_by_side(cnn, snn, tmp_path, "elsewhere")
    assert asked == [(cnn.data.name, "elsewhere")]


def test_every_surrogate_of_a_search_has_its_own_steepness():
    settings = laid_over(asdict(TrainConfig(alpha=4.0)), {"surrogate": "exponential", "lr": 0.1})
    assert TrainConfig(**settings).alpha is None
    assert laid_over({"alpha": 4.0}, {"surrogate": "atan"}) == {"alpha": 4.0, "surrogate": "atan"}


def test_errors_are_counted_by_class():
    labels = torch.tensor([0, 0, 0, 1, 1])
    cnn, snn = torch.tensor([0, 1, 1, 1, 0]), torch.tensor([1, 1, 0, 1, 1])
    first, second = class_errors(labels, cnn, snn, ("cat", "dog"))
    assert tuple(vars(first).values()) == ("cat", 3, 2, 2, 1, "dog", "dog")
    assert tuple(vars(second).values()) == ("dog", 2, 1, 0, 0, "cat", "")


def test_the_frontier_is_what_nothing_beats_in_both():
    points = {"a": (1.0, 0.5), "b": (2.0, 0.4), "c": (3.0, 0.9), "d": (3.0, 0.8), "e": (9.0, 0.9)}
    assert frontier(points) == ["a", "c"]


def test_a_finished_study_trains_nothing_and_another_one_is_refused(compared, tiny):
    study, folder, rows = compared
    before = {p: p.stat().st_mtime_ns for p in (folder / TRIALS).rglob("*")}
    told = []
    run_study(study, folder, resume=True, on_trial=told.append)
    assert told == list(study.trials)
    assert {p: p.stat().st_mtime_ns for p in (folder / TRIALS).rglob("*")} == before
    assert write_results(read_study(folder), folder) == rows
    with pytest.raises(SpikeportError, match="already exists; pass --resume"):
        run_study(study, folder)
    with pytest.raises(SpikeportError, match="another study: it has study = 'compare', asked for 'seeds'"):
        run_study(seeds_study(tiny()), folder, resume=True)
    longer = Study(study.kind, {n: replace(c, epochs=9) for n, c in study.rows.items()}, study.seeds)
    with pytest.raises(SpikeportError, match="-cnn: epochs = 1, asked for 9"):
        run_study(longer, folder, resume=True)
    elsewhere = Study(study.kind, {n: replace(c, device="cpu") for n, c in study.rows.items()}, study.seeds)
    run_study(elsewhere, folder, resume=True)


def test_a_folder_that_is_no_study_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SpikeportError, match="not the folder of a study"):
        run_study(seeds_study(tiny()), tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"study": "seeds", "rows": 3, "seeds": [0]}'])
def test_a_damaged_definition_is_refused(tiny, tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(SpikeportError, match="not the definition of a study"):
        run_study(seeds_study(tiny()), tmp_path, resume=True)
    with pytest.raises(SpikeportError, match="not an ablation, a comparison or a study of seeds"):
        read_study(tmp_path)


def test_unfinished_rows_have_no_mean(tiny):
    row = Row("row", tiny(), 2, {"test_accuracy": []})
    assert row.mean("test_accuracy") is row.deviation("test_accuracy") is None


NARROW = Space(lr=(1e-3, 1e-2), v_threshold=(1, 1), surrogates=("atan", "sigmoid"))


def test_a_search_goes_on_where_it_was_interrupted_and_ends_the_same(tiny, tmp_path, monkeypatch):
    definition = Search(tiny(epochs=1), NARROW, sampler="random")
    whole = run_search(definition, tmp_path / "whole", 2)
    assert len(whole) == 2
    assert all(1e-3 <= row.config.lr <= 1e-2 and row.config.v_threshold == 1 for row in whole)
    accuracies = [row.mean("validation_accuracy") for row in whole]
    assert accuracies == sorted(accuracies, reverse=True)

    started = []

    def fails_in_the_second(folder, name, config):
        started.append(name)
        if name == "trial-0001":
            raise KeyboardInterrupt
        return original(folder, name, config)

    original = search.run_trial
    monkeypatch.setattr(search, "run_trial", fails_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_search(definition, tmp_path / "parts", 2)
    assert started == ["trial-0000", "trial-0001"]
    monkeypatch.undo()
    assert run_search(definition, tmp_path / "parts", 2, resume=True) == whole
    assert (tmp_path / "parts/table.csv").read_bytes() == (tmp_path / "whole/table.csv").read_bytes()


def test_two_folders_share_one_database(tiny, tmp_path):
    shared = Search(tiny(epochs=1), NARROW, storage=f"sqlite:///{tmp_path / 'shared.db'}")
    first = run_search(shared, tmp_path / "one", 1)
    second = run_search(shared, tmp_path / "two", 2)
    assert [len(first), len(second)] == [1, 1]
    assert second[0].name == "trial-0001"
    with pytest.raises(SpikeportError, match="search 'search' in the database: another study: it has .*epochs = 1"):
        run_search(replace(shared, base=tiny(epochs=2)), tmp_path / "three", 3)
    assert not (tmp_path / "three").exists()


def test_a_trial_that_diverges_does_not_end_the_search(tiny, tmp_path, monkeypatch):
    original = search.run_trial

    def diverges(folder, name, config):
        if name == "trial-0000":
            raise SpikeportError("the loss became nan")
        return original(folder, name, config)

    monkeypatch.setattr(search, "run_trial", diverges)
    told: list[tuple[str, str]] = []
    rows = run_search(Search(tiny(epochs=1), NARROW), tmp_path / "s", 2, on_trial=lambda *trial: told.append(trial))
    assert [row.name for row in rows] == ["trial-0001"]
    assert told == [("trial-0000", "the loss became nan"), ("trial-0001", "")]


def test_a_search_of_which_every_trial_failed_is_an_error(tiny, tmp_path):
    with pytest.raises(SpikeportError, match=r"every trial failed, the last with: .*lower --lr"):
        run_search(Search(tiny(epochs=1), replace(NARROW, lr=(1e29, 1e30))), tmp_path / "s", 2)
    assert not (tmp_path / "s/pareto.svg").exists()


def test_one_failed_training_ends_a_study_with_its_name(tiny, tmp_path):
    study = seeds_study(tiny(lr=1e30, kind="cnn"), 1)
    with pytest.raises(SpikeportError, match="trial small-digits-squeezenet-p-cnn-seed0: .*lower --lr"):
        run_study(study, tmp_path / "study")


def test_a_trial_goes_on_from_its_checkpoint(tiny, tmp_path, monkeypatch):
    told = []

    def dies_after_the_first(row):
        told.append(row["epoch"])
        if row["epoch"] == 1:
            raise RuntimeError("killed")

    monkeypatch.setattr(running, "train", partial(train, on_epoch=dies_after_the_first))
    monkeypatch.setattr(running, "measure", lambda run: None)
    with pytest.raises(RuntimeError, match="killed"):
        running.run_trial(tmp_path, "trial", tiny())
    running.run_trial(tmp_path, "trial", tiny())
    assert told == [1, 2]


def test_a_trial_that_another_machine_has_asked_for_meanwhile_is_not_trained(tmp_path):
    study = optuna.create_study()
    study.ask()
    before = SimpleNamespace(trials=[], ask=study.ask, tell=study.tell)  # the study as it was when we looked
    assert search._next(before, tmp_path, 1) is None
    assert study.trials[1].state == TrialState.FAIL
    assert not list(tmp_path.iterdir())


def test_zero_processes_and_trials_are_refused(tiny, tmp_path):
    with pytest.raises(SpikeportError, match="0 processes"):
        run_study(seeds_study(tiny()), tmp_path / "s", processes=0)
    with pytest.raises(SpikeportError, match="0 trials"):
        run_search(Search(tiny(), NARROW), tmp_path / "s", 0)
    with pytest.raises(SpikeportError, match="sampler 'grid' is not one of tpe, random"):
        Search(tiny(), NARROW, sampler="grid")

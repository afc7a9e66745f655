"""spikeport study: the verbs end to end on a few digits, and what they refuse."""

import csv
import json

import pytest

from spikeport.commands.study import settings

TINY = ("--epochs", 1, "--set", "width=0.0625", "--set", "schedule=constant", "--set", "dataset=small-digits")


def test_every_study_is_a_verb(works):
    text = works("study", "--help")
    assert all(name in text for name in ("ablation", "search", "compare", "seeds", "paper"))


def test_a_comparison_prints_its_table_and_writes_it(works, tmp_path):
    out = tmp_path / "study"
    command = ("study", "compare", "--model", "squeezenet-p", *TINY, "--set", "keep=[4]", "--out", out)
    text = works(*command)
    assert "small-digits-squeezenet-p-cnn" in text
    assert {path.name for path in out.iterdir()} >= {"study.json", "table.csv", "table.md", "pareto.svg", "twins"}
    rows = json.loads(works(*command, "--resume", "--json"))
    assert [row["row"].rsplit("-", 1)[1] for row in rows] == ["cnn", "snn"]
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["test_accuracy_mean"]) for line in table] == [row["test_accuracy"][0] for row in rows]
    pair = out / "twins" / "small-digits-squeezenet-p-snn"
    assert {path.name for path in pair.iterdir()} == {"errors.csv", "errors.md", "predictions.png"}
    figures = out / "trials" / "small-digits-squeezenet-p-snn-seed0" / "figures"
    assert {path.name for path in figures.iterdir()} == {"curves.svg", "gradients.svg", "rates.svg"}


def test_seeds_and_ablation_and_search_print_their_tables(works, tmp_path):
    text = works("study", "seeds", *TINY, "--seeds", 2, "--set", "keep=[4]", "--out", tmp_path / "seeds")
    assert "2/2" in text
    assert "±" in text
    text = works("study", "ablation", "--schedule", "9", *TINY, "--out", tmp_path / "ablation")
    assert "fire-9" in text
    fixed = ("--tau", 2, "--v-threshold", 1, "--surrogate", "atan", "--sampler", "random")
    text = works("study", "search", *TINY, "--trials", 1, *fixed, "--set", "keep=[4]", "--out", tmp_path / "search")
    assert "trial-0000" in text


def test_lists_are_set_as_train_takes_them():
    config = settings(None, ["augment=crop,flip", "milestones=2,3", "keep=4", "epochs=5", 'surrogate="sigmoid"'])
    assert (config.augment, config.milestones, config.keep) == (("crop", "flip"), (2, 3), (4,))
    assert settings(None, ['augment=["crop"]', "keep=[4, 6]", "augment=none"]).augment == ()


def test_a_surrogate_that_is_set_has_its_own_steepness(tmp_path):
    (tmp_path / "settings.toml").write_text("alpha = 4.0\n")
    assert settings(tmp_path / "settings.toml", None).alpha == 4.0
    assert settings(tmp_path / "settings.toml", ["surrogate=sigmoid"]).alpha is None


def test_the_papers_tables_as_text_and_json(works):
    text = works("study", "paper", "--table", "4.2")
    assert "not run" in text
    assert "549,114" in text
    lines = json.loads(works("study", "paper", "--table", "4.2", "--json"))
    line = next(line for line in lines if (line["row"], line["quantity"]) == ("ref-1", "parameters"))
    assert (line["paper"], line["ours"]) == ("599130", 549_114)
    assert line["difference"] == pytest.approx(549_114 / 599_130 - 1)
    assert "Fire 5" in line["reason"]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("keep=[]: SqueezeNet has the Fire modules", ("ablation", "--schedule", "", "--out", "s")),
        ("keep=[4, 11]: SqueezeNet has the Fire modules", ("ablation", "--schedule", "4,11", "--out", "s")),
        ("schedule 'best': not one of full", ("ablation", "--schedule", "best", "--out", "s")),
        ("'resnet' is not one of squeezenet", ("compare", "--model", "resnet", "--out", "s")),
        ("unknown data set 'mnist'", ("compare", "--dataset", "mnist", "--out", "s")),
        ("0 seeds", ("seeds", "--seeds", "0", "--out", "s")),
        ("0 processes", ("seeds", "--processes", "0", "--out", "s")),
        ("--set depth=3: expected NAME=VALUE", ("seeds", "--set", "depth=3", "--out", "s")),
        ("width is 'wide'; expected a finite number", ("seeds", "--set", "width=wide", "--out", "s")),
        (
            "the search space is empty",
            ("search", *("--lr", "1e-3", "--tau", "2", "--v-threshold", "1", "--surrogate", "atan"), "--out", "s"),
        ),
        (
            "--set model has no effect: the study sets it; give --model",
            ("compare", "--set", "model=mixnet", "--out", "s"),
        ),
        ("--set kind has no effect", ("compare", "--set", "kind=cnn", "--out", "s")),
        ("--set lr has no effect: the study sets it; give --lr", ("search", "--set", "lr=0.5", "--out", "s")),
        ("--set keep has no effect: the study sets it; give --schedule", ("ablation", "--set", "keep=4", "--out", "s")),
        ("--set keep '4;6': expected whole numbers", ("seeds", "--set", "keep=4;6", "--out", "s")),
        ("the range 3.0:2.0 of tau is empty", ("search", "--tau", "3:2", "--out", "s")),
        ("--lr 'fast': expected LOW:HIGH or one number", ("search", "--lr", "fast", "--out", "s")),
        ("no surrogate to choose from", ("search", "--surrogate", ",", "--out", "s")),
        ("unknown surrogate 'step'", ("search", "--surrogate", "atan,step", "--out", "s")),
        ("nosuch.db cannot be used", ("search", "--storage", "sqlite:////nowhere/nosuch.db", "--out", "s")),
        ("table '4.4' is not one of 4.1, 4.2, 4.3", ("paper", "--table", "4.4")),
        ("--data, --out, --processes and --resume are for --quick", ("paper", "--table", "4.2", "--resume")),
        ("--data, --out, --processes and --resume are for --quick", ("paper", "--table", "4.2", "--processes", 2)),
        ("--quick trains on CIFAR-10; add --data FOLDER", ("paper", "--table", "4.2", "--quick")),
        ("--quick trains its own study", ("paper", "--table", "4.2", "--quick", "--study", "s")),
        ("study.json: no such file", ("paper", "--table", "4.2", "--study", "nothing")),
    ],
)
def test_wrong_use_is_refused_in_one_line_and_writes_nothing(refused, tmp_path, monkeypatch, message, arguments):
    monkeypatch.chdir(tmp_path)
    assert message in refused("study", *arguments)


def test_the_folder_of_another_study_is_refused(refused, works, tmp_path):
    out = tmp_path / "study"
    works("study", "seeds", *TINY, "--seeds", 1, "--set", "keep=[4]", "--out", out)
    assert "already exists; pass --resume" in refused("study", "seeds", *TINY, "--out", out)
    message = refused("study", "ablation", *TINY, "--out", out, "--resume")
    assert "another study: it has study = 'seeds', asked for 'ablation'" in message
    message = refused("study", "seeds", *TINY, "--seeds", 2, "--set", "keep=[4]", "--out", out, "--resume")
    assert "another study: it has seeds = [0], asked for [0, 1]" in message
    other = ("study", "ablation", *TINY, "--out", tmp_path / "ablation")
    works(*other, "--schedule", "4")
    message = refused(*other, "--schedule", "6", "--resume")
    assert "another study: it has no fire-6, which is asked for" in message

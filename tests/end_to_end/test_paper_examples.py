"""The recipes of examples/paper are settings of ``train``, and its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from spikeport.core import TrainConfig
from spikeport.core.data import DATASETS
from spikeport.main import cli

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
RECIPES = sorted(FOLDER.glob("*.toml"))


def commands(text: str) -> list[list[str]]:
    lines = re.sub(r"\\\n", " ", text).replace("`", "\n").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("spikeport ")]


COMMANDS = [c for name in ("README.md", "tables.sh") for c in commands((FOLDER / name).read_text())]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_its_network(path):
    config = TrainConfig(**TrainConfig.read(path))
    assert config.dataset == "cifar10"
    config.spec(10, (3, 32, 32)).build()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_is_one_of_ours(arguments):
    group = typer.main.get_command(cli)
    while hasattr(group, "commands"):
        group, arguments = group.commands[arguments[0]], arguments[1:]
    given = group.make_context(group.name, list(arguments)).params
    files = [arguments[k + 1] for k, flag in enumerate(arguments) if flag == "--config"]
    assert all((FOLDER / Path(name).name).exists() for name in files if "$" not in name)
    for dataset in given.get("dataset") or ():
        assert dataset.split("=")[0] in DATASETS


def test_there_is_something_to_check():
    assert len(RECIPES) == 3
    assert len(COMMANDS) > 10

"""The environment: found where it is said to be, never mistaken for another folder, checked when built."""

from pathlib import Path

import pytest

from spikeport.core.errors import SpikeportError
from spikeport.core.files import write_json
from spikeport.targets.loihi.lava import engine, environment, simulate_lava
from spikeport.targets.loihi.lava.environment import MARKER, REQUIREMENTS

from .test_lava_failures import PROGRAM, X


def marker(**changes: object) -> dict[str, object]:
    return {"complete": True, "requirements": REQUIREMENTS, "python": "3.11.7"} | changes


def test_home_follows_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEPORT_LAVA_HOME", "/somewhere/lava")
    assert environment.default_home() == Path("/somewhere/lava")
    monkeypatch.delenv("SPIKEPORT_LAVA_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert environment.default_home() == Path("/cache/spikeport/lava")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environment.default_home() == Path.home() / ".cache/spikeport/lava"


def test_a_ready_environment(lava: Path) -> None:
    found = environment.status()
    assert found.ready
    assert found.problem == ""
    assert found.versions["lava-nc"] == "0.10.0"
    assert lava == found.home / "bin/python"
    assert environment.setup() == found  # nothing to do
    assert not list(found.home.glob("lib/python*/site-packages/tests"))


def test_without_environment_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEPORT_LAVA_HOME", str(tmp_path / "none"))
    with pytest.raises(SpikeportError, match=r"no Lava environment at .*none; run `spikeport lava setup`"):
        simulate_lava(PROGRAM, X)
    engine.shutdown()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (marker(complete=False), "unfinished; run `spikeport lava setup`"),
        (marker(requirements={"lava-nc": "0.9.0"}), "other versions; run `spikeport lava setup`"),
        (marker(), "Python of the Lava environment .* is gone; run `spikeport lava setup`"),
        ({"something": "else"}, "is no Lava environment"),
        (["a list"], "is no Lava environment"),
    ],
)
def test_what_is_not_ready_says_why(tmp_path: Path, written: object, told: str) -> None:
    write_json(tmp_path / MARKER, written)
    with pytest.raises(SpikeportError, match=told):
        environment.require(tmp_path)


def test_a_folder_of_others_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpikeportError, match="exists and is no Lava environment"):
        environment.setup(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failing_installation_is_told_and_not_taken_for_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REQUIREMENTS, "lava-nc", "0.0.0")
    said: list[str] = []
    with pytest.raises(SpikeportError, match=r"failed: .*lava-nc==0\.0\.0.*; check the network"):
        environment.setup(tmp_path / "lava", said.append)
    assert len(said) == 2
    assert "unfinished" in environment.status(tmp_path / "lava").problem


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpikeportError, match="cannot write .*; free it, or set SPIKEPORT_LAVA_HOME"):
        environment.setup(tmp_path / "file" / "lava")


def test_only_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SpikeportError, match="Linux only"):
        environment.setup(tmp_path / "lava")
    with pytest.raises(SpikeportError, match="Linux only"):
        environment.require(tmp_path / "lava")

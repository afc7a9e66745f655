"""The pictures of a run: drawn from its tables, readable as SVG, with what they must show."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from spikeport.core import SpikeportError, train
from spikeport.core.figures import draw_figures


def texts(file: Path) -> set[str]:
    return {"".join(e.itertext()).strip() for e in ElementTree.parse(file).iter() if e.tag.endswith("}text")}


def test_a_spiking_run_gets_curves_gradients_and_rates(tiny, tmp_path):
    run = train(tiny(epochs=3, patience=0), tmp_path / "run")
    files = draw_figures(run.path, rate_goal=0.25)
    assert [file.relative_to(run.path) for file in files] == [
        Path("figures") / f"{name}.svg" for name in ("curves", "gradients", "rates")
    ]
    curves, gradients, rates = map(texts, files)
    assert {"loss", "accuracy", "train", "validation"} <= curves
    assert {"stem.conv", "features.fire4.expand3.conv", "classifier.conv", "epoch 1", "epoch 2", "epoch 3"} <= gradients
    assert {"stem.act", "features.fire4.squeeze.act", "goal 0.25"} <= rates
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in draw_figures(run.path, rate_goal=0.25)] == before


def test_a_cnn_has_no_rates(tiny, tmp_path):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    assert [file.stem for file in draw_figures(run.path)] == ["curves", "gradients"]


@pytest.mark.parametrize("damage", ["missing", "other", "empty"])
def test_a_folder_without_tables_is_refused(tiny, tmp_path, damage):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    file = run.path / "layers.csv"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("a,b\n1,2\n" if damage == "other" else "")
    with pytest.raises(SpikeportError, match="run: no tables of a training to draw"):
        draw_figures(run.path)
    assert not (run.path / "figures").exists()

"""Errors of other libraries in one line."""

import onnxruntime
import optuna
import pytest
import torch

from spikeport.core import SpikeportError, TrainConfig
from spikeport.core.distributed import pick_device
from spikeport.core.errors import reason
from spikeport.export.onnx_model import open_onnx
from spikeport.profiling.studies import Search, Space, run_search


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n  second"), "second"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (KeyError("a"), "a is missing"),
        (ValueError("It is cut. If you trust it ...\nlong"), "It is cut"),
    ],
)
def test_the_first_sentence_that_says_something(error, told):
    assert reason(error) == told


def test_an_error_without_text_is_told_by_its_kind(tmp_path, monkeypatch):
    def fail(kind):
        def raised(*args, **kwargs):
            raise kind

        return raised

    monkeypatch.setattr(torch, "zeros", fail(RuntimeError))
    with pytest.raises(SpikeportError, match=r"device 'cpu' cannot be used here \(RuntimeError\)"):
        pick_device("cpu")
    monkeypatch.undo()
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail(ValueError))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(SpikeportError, match=r"not an ONNX model \(ValueError\)"):
        open_onnx(tmp_path / "model.onnx")
    monkeypatch.setattr(optuna, "create_study", fail(ImportError))
    with pytest.raises(SpikeportError, match=r"cannot be used \(ImportError\)"):
        run_search(Search(TrainConfig(width=0.0625), Space()), tmp_path / "search", 1)

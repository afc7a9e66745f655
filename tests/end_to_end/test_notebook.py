"""The notebook of the Python API runs from top to bottom, and shows what it says."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "api.ipynb"


def test_the_notebook_runs(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells), "it is stored without outputs"
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output["data"]["text/plain"] for cell in book.cells for output in cell.get("outputs", ()) if "data" in output
    ]
    assert any("snn" in text for text in shown)
    assert "[0, 1, 0, 1, 0, 1, 0, 1]" in shown  # h = 0.75, then 1.125: a spike every second step
    assert (tmp_path / "runs/snn/report/index.html").exists()
    assert (tmp_path / "runs/mine/certificate.json").exists()
    assert (tmp_path / "runs/ablation/table.csv").exists()

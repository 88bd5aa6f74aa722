"""The notebooks run from top to bottom, on small runs, and lie in the repository without outputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The notebooks somewhere outside the repository, which they do not need."""
    return Path(shutil.copytree(NOTEBOOKS, tmp_path_factory.mktemp("anywhere") / "notebooks"))


def small(corpus: Path) -> str:
    settings = ["debug=smoke", "data=text_files", f"data.paths=[{corpus}]", "data.tokenizer.vocab_size=300"]
    settings += ["trainer.limit_train_batches=10", "~callbacks.trade_off", "callbacks.decoding_monitor.new_tokens=16"]
    return f"overrides = {settings!r}\nnum_samples = 200\nprompt = 'def alpha(beta, n=1):'"


def execute(path: Path, parameters: str) -> Any:
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += f"\n{parameters}"
    # The tests draw nowhere (conftest.py); a notebook draws in its page.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=environment)
    return notebook


def num_pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed(notebook: Any) -> str:
    return "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )


def test_quickstart_then_walkthrough(workplace: Path, corpus: Path) -> None:
    quickstart = execute(workplace / "01_quickstart.ipynb", small(corpus))
    assert num_pictures(quickstart) == 2
    assert "verified text equals autoregressive text: True" in printed(quickstart)
    assert (workplace / "outputs/notebooks/quickstart/result.json").exists()
    walkthrough = execute(workplace / "02_decoding_walkthrough.ipynb", small(corpus))
    assert num_pictures(walkthrough) == 3
    assert "equal: True" in printed(walkthrough)
    assert "inside the bars" in printed(walkthrough)


def test_trade_offs_of_the_committed_experiments() -> None:
    notebook = execute(NOTEBOOKS / "03_recycle_depth_tradeoffs.ipynb", "")
    measured = (NOTEBOOKS.parent / "experiments/005_smollm2/depth.csv").exists()
    assert num_pictures(notebook) == 2 + measured
    assert ("has not been measured yet" in printed(notebook)) is not measured
    assert "If the text must be exactly the backbone's: verified" in printed(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_no_outputs_are_committed(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].cell_type == "markdown"


def test_all_notebooks_are_tested() -> None:
    assert NAMES == ["01_quickstart.ipynb", "02_decoding_walkthrough.ipynb", "03_recycle_depth_tradeoffs.ipynb"]

"""The tutorials run, offline and in their short mode, and are stored without outputs.

What they claim they assert themselves, from fixed seeds: an assertion that fails there is an error here.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 180.0  # alone on a core each takes 30 or less

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_tutorials() -> None:
    """The tests below are generated, so an empty folder would pass unseen."""
    assert [path.stem for path in NOTEBOOKS] == [
        "01_from_logit_to_mixed_logit",
        "02_the_gamma_closed_form",
        "03_draws_bias_and_the_integration_error",
        "04_a_real_application",
        "05_bayesian_mixed_logit",
        "06_a_recovery_study",
        "07_from_mixed_logit_to_mixdpo",
        "08_scaling_out",
        "09_measuring_heterogeneity",
    ]


@each_notebook
def test_runs_in_short_mode(path: Path) -> None:
    runs(path, {})


def test_the_application_runs_on_the_real_data(shared_data: Path) -> None:
    runs(FOLDER / "04_a_real_application.ipynb", {"MIXLOGIT_DATA": str(shared_data)})


def runs(path: Path, variables: dict[str, str]) -> None:
    """Execute a notebook in its short mode, without warnings, and with a picture wherever one is promised."""
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "MIXLOGIT_TUTORIAL_SHORT": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)  # the kernel draws inline, as for a reader
    environment.pop("MIXLOGIT_DATA", None)
    environment |= variables
    end = time.monotonic() + SECONDS

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        # the limit is one for the notebook, not for each cell
        timeout_func=lambda cell: max(1, round(end - time.monotonic())),
    )
    client.execute(env=environment)  # a cell that raises, or that runs out of time, raises here

    outputs = {cell.id: cell.outputs for cell in code_cells(notebook)}
    noise = {name: o.text for name, cell in outputs.items() for o in cell if o.get("name") == "stderr"}
    assert noise == {}, "a reader would see warnings"
    pictures = [name for name, cell in outputs.items() if any("image/png" in o.get("data", {}) for o in cell)]
    assert pictures == [name for name in outputs if name.endswith("-figure")]


@each_notebook
def test_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in code_cells(notebook) if cell.outputs or cell.execution_count is not None] == []


@each_notebook
def test_cells_have_names(path: Path) -> None:
    """Every cell has an id that a person gave it, and under each picture stands what to see."""
    cells = nbformat.read(path, as_version=4).cells
    names = [cell.id for cell in cells]
    assert len(set(names)) == len(names)
    assert [name for name in names if not name.replace("-", "").isalpha()] == []
    below = [after for before, after in itertools.pairwise(cells) if before.id.endswith("-figure")]
    assert below
    assert [cell.id for cell in below if "*What to see:*" not in cell.source] == []

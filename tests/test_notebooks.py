"""The notebooks run from their first cell to their last, with shorter lengths and nothing else changed."""

import ast
import os
import sys

import nbformat
import pytest

import snippets

nbclient = pytest.importorskip("nbclient")

FOLDER = snippets.ROOT / "docs/notebooks"
LENGTHS = {  # 132 tiles are the first of which each photograph has two
    "first-reconstruction": {"CROPS": 64, "STEPS": 2},
    "own-folder-to-verdict": {"TILES": 132, "STEPS": 2, "BROKEN_STEPS": 2},
    "small-labels": {"IMAGES": 120, "TEST": 24, "STEPS": 2, "CLASSIFIER_STEPS": 2},
    "the-study": {"PARTICLES": 48, "PERMUTATIONS": 19},
}
"""What stands for the numbers in the cell called `lengths`."""


def test_every_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(LENGTHS)


@pytest.mark.parametrize("name", LENGTHS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    book = nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5) and book.metadata.kernelspec.name == "python3"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    lengths = next(cell for cell in code if cell.id == "lengths")
    said = {node.targets[0].id for node in ast.parse(lengths.source).body if isinstance(node, ast.Assign)}
    assert said == set(LENGTHS[name])
    lengths.source = "\n".join(f"{key} = {value}" for key, value in LENGTHS[name].items())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the same unmask as here
    monkeypatch.setenv("NUMBA_OPT", "0")  # UMAP is compiled in each process
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert pictures and list((tmp_path / "runs").iterdir())

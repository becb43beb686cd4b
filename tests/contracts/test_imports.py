"""No circle among the imports, also of those inside functions and for type checkers alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("kernels", "probes", "analyses", "viz", "app")


def modules(part: str) -> dict[str, ast.Module]:
    """Parse every module of a part, by its full name."""
    parsed = {}
    for path in sorted((ROOT / part).rglob("*.py")):
        pieces = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(("headscope", *pieces)).removesuffix(".__init__")
        parsed[name] = ast.parse(path.read_text())
    return parsed


@cache
def tree() -> dict[str, ast.Module]:
    return {name: module for part in PARTS for name, module in modules(part).items()}


def exported(package: str, name: str) -> str:
    """Name the module that a lazy ``__getattr__`` of a package takes a name from."""
    for node in ast.walk(tree()[package]):
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return imported(node.module or "", name)
    return package


def is_analysis(module: str, name: str) -> bool:
    return module.startswith("headscope.analyses.") and module.rpartition(".")[2] == name


def imported(package: str, name: str) -> str:
    """Name the module behind ``from package import name``."""
    if f"{package}.{name}" in tree():
        return f"{package}.{name}"
    if package == "headscope.analyses":
        matching = [module for module in tree() if is_analysis(module, name)]
        return matching[0] if matching else package
    return exported(package, name) if package == "headscope.probes" else package


def edges(name: str, module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [imported(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        yield from ((name, target) for target in targets if target in tree() and target != name)


def circles(parsed: dict[str, ast.Module]) -> list[str]:
    graph = nx.DiGraph()
    for name, module in parsed.items():
        graph.add_edges_from(edges(name, module))
    knots = [sorted(knot) for knot in nx.strongly_connected_components(graph) if len(knot) > 1]
    return [" -> ".join(at for at, _ in nx.find_cycle(graph.subgraph(knot))) for knot in knots]


def test_no_module_imports_itself_through_others():
    assert circles(tree()) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from headscope.probes import capture",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from headscope.probes.capturing.capture import capture",
        "from headscope.probes.capturing import capture",
        "import headscope.probes.capturing.capture",
    ],
)
def test_a_circle_is_noticed_however_it_is_imported(text):
    # The capture reads its options, so these must not read the capture.
    parsed = modules("probes") | {"headscope.probes.capturing.options": ast.parse(text)}
    assert any("capturing.options" in circle for circle in circles(parsed))

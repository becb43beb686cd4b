"""Where things lie in analyses/, and what they may be called."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headscope import analyses

ROOT = Path(__file__).parents[2]
PARTS = ("kernels", "probes", "analyses", "viz", "app")

# Private words of ours that a reader of the field would not guess, and what to write instead.
METAPHORS = {
    "seam": "attention interface",
    "sight": "mask rule",
    "bricks": "amx tiles",
    "sheets": "tables",
    "leaders": "top-k",
    "twin": "counterfactual",
    "hear": "intercept",
    "utils": "a noun",
}


def sources(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def family_of(path: Path) -> str:
    return path.relative_to(ROOT / "analyses").parts[0]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_a_helper_is_used_by_its_own_family_alone():
    for path in sources("analyses"):
        for name in imports(path):
            pieces = name.split(".")
            if pieces[:2] != ["headscope", "analyses"] or len(pieces) < 4:
                continue
            family, module = pieces[2:4]
            if not family.startswith("_") and module.startswith("_"):
                assert family == family_of(path), f"{path}: {name} is a helper of another family"


def test_analyses_of_one_family_do_not_import_those_of_another():
    families = analyses.families()
    for path in sources("analyses"):
        for name in imports(path):
            pieces = name.split(".")
            if len(pieces) > 3 and pieces[2] in families and pieces[3] in families[pieces[2]]:
                assert family_of(path) == pieces[2], f"{path}: {name}"


def test_every_family_helper_has_a_user():
    used = {name for part in PARTS for path in sources(part) for name in imports(path)}
    for path in sources("analyses"):
        if path.stem.startswith("_") and not path.stem.startswith("__"):
            module = ".".join(("headscope", *path.relative_to(ROOT).with_suffix("").parts))
            assert any(name == module or name.startswith(f"{module}.") for name in used), path


def test_no_family_has_the_name_of_an_analysis_and_each_has_a_heading():
    families = analyses.families()
    assert not set(families) & set(analyses.names())
    assert sorted(name for names in families.values() for name in names) == analyses.names()
    for family in families:
        assert analyses.heading(family).endswith(".")


def test_two_analyses_of_one_name_are_an_error(tmp_path, monkeypatch):
    (tmp_path / "head_roles").mkdir()
    (tmp_path / "head_roles" / "sinks.py").write_text("")
    monkeypatch.setattr(analyses, "__path__", [*analyses.__path__, str(tmp_path)])
    with pytest.raises(RuntimeError, match="two analyses are called sinks"):
        analyses.names()


@pytest.mark.parametrize(("earlier", "now"), analyses.RENAMED.items())
def test_an_earlier_name_loads_the_analysis_and_warns(earlier, now):
    with pytest.warns(FutureWarning, match=now):
        assert analyses.load(earlier) is analyses.load(now)


@pytest.mark.parametrize("part", PARTS)
def test_names_are_words_of_the_field(part):
    for path in sources(part):
        tree = ast.parse(path.read_text())
        names = {path.stem}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
        for name in names:
            words = set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r" \1", name).lower()))
            for word in words & METAPHORS.keys():
                raise AssertionError(f"{path}: {name!r}; write {METAPHORS[word]!r}")


def test_type_checkers_and_editors_know_every_analysis(request):
    stub = ROOT / "analyses" / "__init__.pyi"
    expected = ast.unparse(expected_stub())
    if request.config.getoption("--write"):
        stub.write_text(expected + "\n")
    assert ast.unparse(ast.parse(stub.read_text())) == expected, "pytest --write this test"


def expected_stub() -> ast.Module:
    """What ``analyses/__init__.pyi`` must hold: the module's own functions, and the analyses."""
    source = ast.parse((ROOT / "analyses" / "__init__.py").read_text())
    kept: list[ast.stmt] = []
    for node in source.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            node.body = [node.body[0], ast.Expr(ast.Constant(...))]
            kept.append(node)
        elif isinstance(node, ast.Assign):
            kept.append(node)
    imports = """
from types import ModuleType
from typing import Any
from headscope.analyses._runtime.options import Option
"""
    for family, members in analyses.families().items():
        for name in members:
            imports += f"from headscope.analyses.{family} import {name} as {name}\n"
    return ast.Module([*ast.parse(imports).body, *kept], [])

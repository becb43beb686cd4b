"""Analyses: families of modules, one module an analysis; the folders are the registry.

In a family (`sink_behavior`, `head_roles`, ...) ``name.py`` is an analysis and ``_name.py`` a
helper of that family alone. Folders that begin with an underscore are what families share;
`comparison` and `series` are public tools that compare several runs or checkpoints.

A module has a docstring whose first line is what users see, ``NEEDS`` (the statistics that its
capture must hold), and ``run``. Positional parameters of ``run`` are what the suite supplies
(``capture, model, prompts, task, sae``); keyword-only parameters with defaults are its options.
Listing names, families and summaries imports none of them.
"""

import ast
import importlib
import inspect
import pkgutil
import warnings
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from headscope.analyses._runtime.options import Option, bounds, checked
from headscope.analyses._runtime.requirements import Needs
from headscope.kernels.errors import InvalidInput

# Packages beside the families that hold tools and no analyses.
TOOLS = ("comparison", "series")
# Earlier names of analyses, good for one release.
RENAMED = {
    "depth": "depth_profile",
    "hardness": "concentration",
    "literal": "latent_retrieval",
    "ranks": "head_rank",
    "rhythm": "preplan_anchor",
    "slots": "position_bias",
}


def names() -> list[str]:
    """List the analyses, without importing them.

    Examples
    --------
    >>> "sinks" in names()
    True
    """
    return sorted(_modules())


def families() -> dict[str, list[str]]:
    """List the analyses by family, without importing them.

    Examples
    --------
    >>> "sae_circuits" in families()["circuits"]
    True
    """
    grouped: dict[str, list[str]] = {}
    for name, (module, _) in sorted(_modules().items()):
        grouped.setdefault(module.split(".")[-2], []).append(name)
    return dict(sorted(grouped.items()))


def heading(family: str) -> str:
    """Return the first line of a family's docstring: its heading wherever analyses are listed.

    >>> heading("circuits")
    'Circuits: through which heads and edges an answer comes.'
    """
    module = importlib.import_module(f"{__name__}.{family}")
    return inspect.cleandoc(module.__doc__ or "").splitlines()[0]


def current(name: str) -> str:
    """Return the name of an analysis, given that or an earlier one, which warns."""
    if name in RENAMED and name not in _modules():
        warnings.warn(
            f"the analysis {name!r} is called {RENAMED[name]!r} now; the old name goes with the "
            "next release",
            FutureWarning,
            stacklevel=3,
        )
        return RENAMED[name]
    if name not in _modules():
        close = get_close_matches(name, names(), n=1)
        others = f"there are {', '.join(names())}"
        meant = f"did you mean {close[0]}? Else {others}" if close else others
        raise InvalidInput(f"analysis: no analysis is called {name!r}; {meant}")
    return name


def load(name: str) -> ModuleType:
    """Import one analysis by name.

    Examples
    --------
    >>> load("sinks").NEEDS
    ('received',)
    """
    module: Any = importlib.import_module(_modules()[current(name)][0])
    if not hasattr(module.run, "__wrapped__"):
        module.run = checked(module.run, name, getattr(module, "SUPPORTS", ()))
    loaded: ModuleType = module
    return loaded


def summary(name: str) -> str:
    """Return the first line of an analysis' docstring, without importing it.

    >>> summary("sinks")
    'Attention sinks: heads that park their attention on a few tokens.'
    """
    return docstring(name).splitlines()[0]


def docstring(name: str) -> str:
    """Return what an analysis says of itself, without importing it."""
    source = Path(_modules()[current(name)][1]).read_text(encoding="utf8")
    return ast.get_docstring(ast.parse(source)) or ""


def _modules() -> dict[str, tuple[str, str]]:
    """Map every analysis to its module and file."""
    return _discovered(tuple(__path__))


@cache
def _discovered(folders: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    modules: dict[str, tuple[str, str]] = {}
    for family in pkgutil.iter_modules(folders):
        if not family.ispkg or family.name.startswith("_") or family.name in TOOLS:
            continue
        paths = [f"{folder}/{family.name}" for folder in folders]
        for module in pkgutil.iter_modules(paths):
            if module.name.startswith("_"):
                continue
            if module.name in modules:
                raise RuntimeError(f"two analyses are called {module.name}")
            path = module.module_finder.path  # type: ignore[union-attr]
            modules[module.name] = (
                f"{__name__}.{family.name}.{module.name}",
                f"{path}/{module.name}.py",
            )
    return modules


def __getattr__(name: str) -> ModuleType:
    """Import an analysis as an attribute: ``from headscope.analyses import sinks``."""
    if name in _modules() or name in RENAMED:
        return load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *names()]


def needs(*selected: str) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of ``capture`` that some analyses need.

    ``stats`` and ``keep``, and ``offsets`` and ``targets`` where one of them names some.

    Examples
    --------
    >>> needs("sinks", "frequencies")
    {'stats': ('received', 'lse'), 'keep': ('q', 'k')}
    >>> from headscope.probes import capture
    >>> cap = capture("headscope/bundled", [[0, 5, 6, 7]], **needs("sinks", "frequencies"))
    >>> load("sinks").run(cap)["sink"].dims
    ('layer', 'head')
    """
    union = Needs()
    for name in selected:
        union |= Needs.of(load(name))
    return union.arguments()


def options(name: str) -> dict[str, Option]:
    """Return the options of an analysis, read from the signature and docstring of ``run``.

    Examples
    --------
    >>> options("sinks")["epsilon"].default
    0.3
    """
    run = load(name).run
    texts, limits = _parameter_texts(inspect.getdoc(run) or ""), bounds(run)
    return {
        parameter.name: Option(
            parameter.default, texts.get(parameter.name, ""), limits.get(parameter.name, ())
        )
        for parameter in inspect.signature(run).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def _parameter_texts(doc: str) -> dict[str, str]:
    """Read the Parameters section of a numpydoc docstring: name -> text on one line."""
    lines = doc.splitlines()
    rules = [index for index, line in enumerate(lines) if line and set(line) == {"-"}]
    texts: dict[str, str] = {}
    for number, rule in enumerate(rules):
        if lines[rule - 1].strip() != "Parameters":
            continue
        end = rules[number + 1] - 1 if number + 1 < len(rules) else len(lines)
        current: list[str] = []
        for line in lines[rule + 1 : end]:
            if line and not line.startswith(" "):
                current = [part.strip() for part in line.split(":")[0].split(",")]
            elif line.strip():
                for name in current:
                    texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    return texts

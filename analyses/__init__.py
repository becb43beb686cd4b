"""Analyses: one module each; the folder is the registry, ``shared`` what they have in common.

``series`` runs any of them over the checkpoints of a model.

A module has a docstring whose first line is what users see, ``NEEDS`` (the statistics that its
capture must hold), and ``run``. Positional parameters of ``run`` are what the suite supplies
(``capture, model, prompts, task, sae``); keyword-only parameters with defaults are its options.
Listing the names imports none of them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any, NamedTuple

from headscope.kernels.errors import InvalidInput

# Keyword-only parameters of ``run`` that the suite supplies and no user sets.
RESERVED = ("progress",)


class Option(NamedTuple):
    """Default value and help text of one option of an analysis."""

    default: Any
    help: str


def names() -> list[str]:
    """List the analyses, without importing them.

    >>> from headscope import analyses
    >>> "sinks" in analyses.names()
    True
    """
    found = pkgutil.iter_modules(__path__)
    return sorted(each.name for each in found if not each.ispkg)


def load(name: str) -> ModuleType:
    """Import one analysis by name.

    >>> from headscope import analyses
    >>> analyses.load("sinks").NEEDS
    ('received',)

    Raises
    ------
    InvalidInput
        When no analysis has this name.
    """
    if name not in names():
        raise InvalidInput(
            f"analysis: no analysis is called {name!r}; there are {', '.join(names())}"
        )
    return importlib.import_module(f"{__name__}.{name}")


def summary(name: str) -> str:
    """Return the first line of an analysis' docstring.

    >>> from headscope import analyses
    >>> analyses.summary("sinks")
    'Attention sinks: heads that park their attention on a few tokens.'
    """
    return inspect.cleandoc(load(name).__doc__ or "").splitlines()[0]


def needs(*wanted: str) -> dict[str, tuple[Any, ...]]:
    """Say what one capture must hold for some analyses, as arguments of ``capture``.

    Parameters
    ----------
    *wanted
        Names of the analyses that share the capture.

    Returns
    -------
    ``stats`` and ``keep``, and ``offsets`` and ``targets`` where an analysis names some.

    Raises
    ------
    HeadscopeError
        When no analysis has such a name.

    Examples
    --------
    >>> from headscope import analyses
    >>> analyses.needs("sinks", "frequencies")
    {'stats': ('received', 'lse'), 'keep': ('q', 'k')}
    >>> from headscope.probes import capture
    >>> cap = capture("headscope/bundled", [[0, 5, 6, 7]], **analyses.needs("sinks", "frequencies"))
    >>> analyses.load("sinks").run(cap)["sink"].dims
    ('layer', 'head')
    """
    from headscope.analyses.shared.needs import Needs

    union = Needs()
    for name in wanted:
        union |= Needs.of(load(name))
    return union.arguments()


def options(name: str) -> dict[str, Option]:
    """Return the options of an analysis, read from the signature and docstring of ``run``.

    >>> from headscope import analyses
    >>> analyses.options("sinks")["epsilon"].default
    0.3
    """
    run = load(name).run
    texts = _parameter_texts(inspect.getdoc(run) or "")
    return {
        parameter.name: Option(parameter.default, texts.get(parameter.name, ""))
        for parameter in inspect.signature(run).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in RESERVED
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
                for each in current:
                    texts[each] = f"{texts.get(each, '')} {line.strip()}".strip()
    return texts

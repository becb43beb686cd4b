"""Methods that say from which tokens of a text an answer came: one file a method.

A module's docstring has the method's name before the colon of its first line, and its source. It
declares ``SIGNED`` (whether a token can count against the answer) and defines ``relevance(trace)``,
which returns one float64 number per token of the text; only their order and their ratios mean
something across methods. Whatever a method cannot follow it refuses with `NotApplicable`. Listing
the methods imports none of them.
"""

import ast
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from headscope.analyses._relevance.trace import Trace
    from headscope.analyses._stats.bootstrap import Array

# What methods share; every other module is one.
SHARED = {"perturbation", "target", "trace"}


@dataclass(frozen=True)
class Method:
    """One method: its module, and the title that users see."""

    name: str
    title: str

    def relevance(self, trace: "Trace") -> "Array":
        """Return the relevance of every token of the text (token,)."""
        module = importlib.import_module(f"{__name__}.{self.name}")
        return module.relevance(trace)  # type: ignore[no-any-return]

    @property
    def signed(self) -> bool:
        """Whether a token can count against the answer."""
        return bool(importlib.import_module(f"{__name__}.{self.name}").SIGNED)


@cache
def methods() -> dict[str, Method]:
    """List the methods by the name of their module.

    >>> all(method.title for method in methods().values())
    True
    """
    by_name = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name in SHARED or module.name.startswith("_"):
            continue
        tree = ast.parse((Path(__path__[0]) / f"{module.name}.py").read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").split("\n")[0]
        by_name[module.name] = Method(module.name, first.split(":")[0])
    return by_name


def measure(trace: "Trace", names: Sequence[str]) -> tuple[dict[str, "Array"], dict[str, str]]:
    """Return the relevances of some methods by name, and why others refuse this text."""
    relevances, refused = {}, {}
    for name in names:
        try:
            relevances[name] = method(name).relevance(trace)
        except NotApplicable as refusal:
            refused[name] = str(refusal)
    return relevances, refused


def method(name: str) -> Method:
    """Return one method; an unknown name is refused with the known ones."""
    if name not in methods():
        raise InvalidInput(f"methods: no {name!r}; choose of {', '.join(methods())}")
    return methods()[name]

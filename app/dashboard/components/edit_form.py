"""A form for every edit of heads, made from its fields: a new edit has one by itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

import streamlit as st

from headscope import probes
from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.probes.interventions import Edit, Head
    from headscope.probes.models.model import Model

VECTORS, GATES = "layer head size", "layer head"
KEY = "what_if"


def kinds() -> dict[str, type[Edit]]:
    """List the edits that a form can be made for, those with the fewest fields first.

    The others hold a table for a whole prompt, which nobody types in.
    """
    from headscope.probes.interventions.base import KINDS

    classes = {}
    for name, kind in KINDS.items():
        widgets = [_kind_of(hint) for hint in _hints(kind).values()]
        # An edit of some heads names them, or has a number for each.
        if all(widgets) and (_names_heads(kind) or GATES in widgets):
            classes[name] = kind
    return dict(sorted(classes.items(), key=lambda item: (len(_hints(item[1])), item[0])))


def title(kind: type[Edit]) -> str:
    """Describe what an edit does: the first line of its docstring."""
    return inspect.cleandoc(kind.__doc__ or kind.__name__).splitlines()[0].rstrip(".")


def draw(kind: type[Edit]) -> dict[str, Any]:
    """Draw a widget for every field of an edit, and return their values."""
    return {
        field.name: _widget(kind, field, _hints(kind)[field.name])
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name in _hints(kind)
    }


def build(
    kind: type[Edit], heads: Sequence[Head], values: Mapping[str, Any], model: Model, prompts: Any
) -> Edit:
    """Build the edit that a form describes, from the ``values`` that `draw` returned.

    Vectors are the means of ``z`` over the prompts; gates are 1 at the other heads.
    """
    arguments: dict[str, Any] = {"heads": tuple(heads)} if _names_heads(kind) else {}
    for name, hint in _hints(kind).items():
        arguments[name] = values[name]
        if _kind_of(hint) == "positions":
            arguments[name] = _positions(f"{kind.__name__}.{name}", values[name])
        elif _kind_of(hint) == VECTORS:
            from headscope.analyses._interventions.ablation import mean_z

            arguments[name] = mean_z(probes.capture(model, prompts, stats=(), keep=("z",)))
        elif _kind_of(hint) == GATES:
            import torch

            arguments[name] = torch.ones(model.layers, model.heads)
            arguments[name][tuple(zip(*heads, strict=True))] = values[name]
    return kind(**arguments)


def _hints(kind: type[Edit]) -> dict[str, Any]:
    """Return the types of the fields, the heads left out."""
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return {name: hints[name] for name in names if name != "heads"}


def _names_heads(kind: type[Edit]) -> bool:
    """Return whether an edit has a field for its heads."""
    return "heads" in get_type_hints(kind)


def _kind_of(hint: Any) -> str:
    """Return the kind of widget for a type; "" where there is none."""
    simple = {float: "float", int: "int", str: "str"}
    if hint in (Sequence[int], Sequence[int] | None):
        return "positions"
    dims = str(getattr(hint, "dim_str", ""))
    return dims if dims in (VECTORS, GATES) else simple.get(hint, "")


def _widget(kind: type[Edit], field: dataclasses.Field[Any], hint: Any) -> Any:
    text = _text(kind, field.name)
    label, key = text.split(";")[0].rstrip("."), f"{KEY}_{kind.__name__}_{field.name}"
    missing = field.default is dataclasses.MISSING
    start: Any = field.metadata.get("start") if missing else field.default
    if _kind_of(hint) == VECTORS:
        st.caption("The vectors are the means of each head over the prompts it is measured on.")
        return None
    if _kind_of(hint) == GATES:
        return st.number_input("Factor, 1 changes nothing", value=0.0, key=key)
    if "choices" in field.metadata:
        choices = field.metadata["choices"]
        return st.selectbox(label, list(choices), format_func=choices.get, key=key, help=text)
    if _kind_of(hint) == "positions":
        first = "" if start is None and not missing else ", ".join(map(str, start or (0,)))
        return st.text_input(label, first, key=key, help=text)
    if _kind_of(hint) == "str":
        return st.text_input(label, start or "", key=key, help=text)
    number = float if hint is float else int
    return number(st.number_input(label, value=number(start or 1), key=key, help=text))


def _positions(name: str, text: str) -> tuple[int, ...] | None:
    """Read positions; None where there are none."""
    if not text.strip():
        return None
    try:
        return tuple(int(position) for position in text.split(","))
    except ValueError as error:
        raise InvalidInput(f"{name}: {text!r} is no list of positions, such as 0, -1") from error


def _text(kind: type[Edit], field: str) -> str:
    """Read what the docstring of an edit says of a field."""
    pattern = rf"^{field}\n((?:    .*\n?)+)"
    section = re.search(pattern, inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    return " ".join(section[1].split()) if section else field.replace("_", " ").capitalize()

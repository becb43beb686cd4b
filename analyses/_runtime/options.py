"""Checks of option values: refuse rather than guess."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from headscope.analyses import Option
from headscope.kernels.errors import InvalidInput, NotApplicable

SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside ``low`` … ``high``."""
    if not low <= value <= high:
        raise InvalidInput(f"{name}: {value!r} is outside {low:g} … {high:g}")


def at_least(name: str, value: float, low: float) -> None:
    """Refuse a number below ``low``."""
    if not value >= low:
        raise InvalidInput(f"{name}: {value!r} is too small; give at least {low:g}")


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that is not among ``choices``."""
    if value not in choices:
        raise InvalidInput(f"{name}: {value!r} is not one of {', '.join(sorted(choices))}")


def one_text(attention: str, analysis: str, known: Collection[str] = ("self",)) -> None:
    """Refuse an attention of an encoder–decoder model that an analysis has no meaning for."""
    if attention not in known:
        raise NotApplicable(
            f"capture: {analysis} follows attention through one text from layer to layer, and this "
            f"is the {attention} attention of an encoder–decoder model; see sinks"
        )


def parse(analysis: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn option values, also as text from a command line, into the types of their defaults.

    >>> from headscope import analyses
    >>> parse("sinks", analyses.options("sinks"), {"epsilon": "0.8"})
    {'epsilon': 0.8}

    Raises
    ------
    HeadscopeError
        For an unknown option, and for a value of the wrong type.
    """
    return {name: _value(analysis, known, name, value) for name, value in given.items()}


def _value(analysis: str, known: Mapping[str, Option], name: str, value: Any) -> Any:
    if name not in known:
        raise InvalidInput(
            f"{name}: {analysis} has no such option; it has {', '.join(sorted(known)) or 'none'}"
        )
    kind = type(known[name].default)
    refusal = InvalidInput(f"{name}: {value!r} is not of the type {kind.__name__}")
    if kind is bool:
        if str(value).lower() not in SWITCH:
            raise refusal
        return SWITCH[str(value).lower()]
    if isinstance(value, bool):
        raise refusal
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise refusal from None
    if kind is int and not isinstance(value, str) and converted != value:
        raise refusal
    return converted

"""A widget for every option of an analysis, made from its signature and bounds."""

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from headscope import analyses
from headscope.analyses._runtime.options import AtLeast, Between, OneOf, Option
from headscope.app.dashboard.components.plain import plain


def draw(name: str, columns: Sequence[Any], start: int = 0) -> dict[str, Any]:
    """Draw the options of an analysis, and return those that differ from their defaults."""
    changed = {}
    for at, (label, option) in enumerate(analyses.options(name).items(), start):
        with columns[at % len(columns)]:
            value = _widget(f"option_{name}_{label}", label, option)
        if value is not None and value != option.default:
            changed[label] = value
    return changed


def _widget(key: str, label: str, option: Option) -> Any:
    default, text = option.default, plain(option.help)
    choices = [bound.choices for bound in option.bounds if isinstance(bound, OneOf)]
    shared: dict[str, Any] = {"key": key, "help": text, "persist_state": "session"}
    if choices:
        words = sorted(choices[0])
        return st.selectbox(plain(label), words, index=words.index(default), **shared)
    if isinstance(default, bool):
        return st.checkbox(plain(label), default, **shared)
    if isinstance(default, str):
        return st.text_input(plain(label), default, max_chars=1000, **shared)
    low, high = _bounds(option)
    if isinstance(default, int):
        low, high = (None if low is None else math.ceil(low), None if high is None else int(high))
        return st.number_input(plain(label), low, high, default, 1, **shared)
    # Steps of the size of the default: 0.01 of 0.3.
    step = 10.0 ** (math.floor(math.log10(abs(default))) - 1) if default else 0.01
    return st.number_input(plain(label), low, high, default, step, format="%g", **shared)


def _bounds(option: Option) -> tuple[float | None, float | None]:
    """Return the lowest and the highest value that an option may have."""
    low = [float(bound.low) for bound in option.bounds if isinstance(bound, AtLeast | Between)]
    high = [float(bound.high) for bound in option.bounds if isinstance(bound, Between)]
    return max(low, default=None), min(high, default=None)

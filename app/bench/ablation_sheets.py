"""Ablation sheets: the sweep over all heads beside TransformerLens hooks, as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headscope.app.bench.sheets import Sheet


def ablation_sheets(result: Mapping[str, Any]) -> Iterator[Sheet]:
    """Lay out the result of `benchmarks/ablation.py`.

    Parameters
    ----------
    result
        What the benchmark wrote.
    """
    version = result["machine"]["transformer_lens"]
    yield Sheet(
        "Against TransformerLens hooks",
        ("prompts", "heads", "headscope, ms", "TransformerLens / headscope", "largest difference"),
        tuple(_row(each) for each in result["sweeps"]),
        f"{result['task']}. TransformerLens {version}: a hook on one head at a time, prompts of "
        "one length in one pass. headscope ablates several heads in one pass and begins at the "
        "edited layer. Nothing is reported unless the numbers agree; the difference is of the "
        "metric, its largest change beside it.",
    )
    yield Sheet(
        "Tokens in one pass",
        ("prompts", *result["rooms"][0]["tokens_in_a_pass"]["ratio"]),
        tuple(
            (str(each["prompts"]), *(f"{one:.2f}" for one in _ratios(each)))
            for each in result["rooms"]
        ),
        "Time of the sweep with so many tokens in a pass, over that of the first column, which is "
        "what headscope takes.",
    )


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    timing = each["timing"]
    return (
        str(each["prompts"]),
        str(each["heads"]),
        f"{timing['median_ms']['headscope']:.0f}",
        f"{timing['ratio']['TransformerLens']:.1f}",
        f"{each['difference']:.1g} of {each['largest_effect']:.3g}",
    )


def _ratios(each: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(each["tokens_in_a_pass"]["ratio"].values())

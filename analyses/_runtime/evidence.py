"""What kinds of evidence the numbers of an analysis are: causal, correlational, learned."""

import json
from functools import cache
from importlib.resources import files


@cache
def table() -> dict[str, list[str]]:
    """Return the kinds of evidence by analysis, which a contract test holds against results."""
    file = files("headscope.analyses._runtime").joinpath("evidence.json")
    kinds: dict[str, list[str]] = json.loads(file.read_text(encoding="utf8"))
    return kinds

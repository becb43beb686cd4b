"""Results: variables with their meaning, companions for their intervals, provenance."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from headscope.analyses._runtime.options import require_one_text
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import LEVEL, bootstrap
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, differs_from_zero
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.formatting import percent

# Units, scale and bounds of a share, and what follows other units of a share.
ZERO_TO_ONE = ("sequential", 0, 1)
SHARE = ("share", *ZERO_TO_ONE)
# Dims of one number a head.
GRID = ("layer", "head")
# What a row of `Results.add_all` may say last.
OWN = ("convention", "source")


class Results:
    """The variables of one result, under the provenance of the capture that they come from.

    Parameters
    ----------
    capture
        The capture, or a Dataset with the provenance in its attributes.
    seed
        Seed of the bootstrap over prompts.
    about
        Attributes that every variable has unless it says otherwise: ``source``, ``convention``,
        ``evidence`` ("causal" where an intervention was made).
    """

    def __init__(self, capture: xr.Dataset, *, seed: int = 0, **about: Any) -> None:
        self.capture, self.seed, self.about = capture, seed, about
        self.variables: dict[str, xr.Variable] = {}

    def __getitem__(self, name: str) -> xr.Variable:
        return self.variables[name]

    def __contains__(self, name: str) -> bool:
        return name in self.variables

    def add(
        self,
        name: str,
        dims: Sequence[str],
        values: ArrayLike,
        long_name: str,
        units: str,
        scale: str = "sequential",
        low: float | None = None,
        high: float | None = None,
        **attrs: Any,
    ) -> None:
        """Add a variable: dims, values, title, units, scale, and the bounds of possible values.

        The scale is ``"sequential"``, or ``"diverging"`` around 0.
        """
        bounds = {end: value for end, value in (("low", low), ("high", high)) if value is not None}
        meaning = {"long_name": long_name, "units": units, "scale": scale, **bounds}
        self.variables[name] = xr.Variable(
            tuple(dims), np.asarray(values), {**meaning, **self.about, **attrs}
        )

    def add_mean(
        self, name: str, dims: Sequence[str], samples: NDArray[Any], long_name: str, units: str,
        *meaning: Any, **attrs: Any,
    ) -> None:  # fmt: skip
        """Add the mean over prompts, the first axis of ``samples``, with its 95 % interval.

        Further arguments are those of `add`. A causal number of every head says which heads have
        an effect: ``effect_heads``, and in ``effect`` the state of that conclusion.
        """
        if {**self.about, **attrs}.get("evidence") == "causal" and tuple(dims) == GRID:
            attrs = {**effect(samples), **attrs}
        ends = bootstrap(samples, seed=self.seed)
        self.add_interval(name, dims, ends, long_name, units, *meaning, **attrs)

    def add_interval(
        self, name: str, dims: Sequence[str], ends: Iterable[Any], long_name: str, units: str,
        *meaning: Any, **attrs: Any,
    ) -> None:  # fmt: skip
        """Add an estimate with its interval, ``ends`` being (estimate, lower, upper)."""
        mean, *sides = ends
        self.add(name, dims, mean, long_name, units, *meaning, **attrs)
        companions = Results(self.capture, interval_of=name, level=LEVEL)
        for end, values in zip(("lower", "upper"), sides, strict=True):
            title = f"{long_name}, {end} end of the {percent(LEVEL)} interval"
            companions.add(f"{name}_{end}", dims, values, title, units, *meaning)
        self.variables |= companions.variables

    def add_all(self, *rows: tuple[Any, ...], **attrs: Any) -> None:
        """Add several variables.

        A row is name, dims, values, title, (units, scale and bounds), and where it has its own,
        convention and source; ``attrs`` are those of all rows.
        """
        self._add_rows(self.add, rows, attrs)

    def add_means(self, *rows: tuple[Any, ...], **attrs: Any) -> None:
        """Add the means of several variables; rows are as in `add_all`, with samples as values."""
        self._add_rows(self.add_mean, rows, attrs)

    def _add_rows(
        self, add: Callable[..., None], rows: Iterable[tuple[Any, ...]], attrs: Mapping[str, Any]
    ) -> None:
        for name, dims, values, long_name, meaning, *own in rows:
            about = {**attrs, **dict(zip(OWN, own, strict=False))}
            add(name, dims, values, long_name, *meaning, **about)

    def dataset(
        self,
        coords: Mapping[str, Any] | None = None,
        verdict: Verdict | None = None,
        note: str = "",
        **attrs: Any,
    ) -> xr.Dataset:
        """Return the variables under the provenance of the capture.

        State and text of a verdict are attributes, and the text ends the note; the ``convention``
        of all variables is that of the result unless it has another. The coordinates ``layer`` and
        ``head`` come from the capture where the variables use them, and ``attention_map`` where it
        has layers without one; there, every number of a layer is NaN.
        """
        if "convention" in self.about:
            attrs = {"convention": self.about["convention"], **attrs}
        if verdict is not None:
            attrs |= {"verdict": verdict.state, "verdict_text": verdict.text}
            note = f"{note} {verdict.text}".strip()
        used = {dim for variable in self.variables.values() for dim in variable.dims}
        shared: dict[str, Any] = {
            name: self.capture[name].values
            for name in ("layer", "head")
            if name in used and name in self.capture
        }
        has_map = attending(self.capture)
        absent = "layer" in used and not has_map.all()
        if absent:
            shared["attention_map"] = ("layer", has_map)
        result = xr.Dataset(dict(self.variables), coords={**shared, **(coords or {})})
        if absent:
            for name in [
                name for name, variable in self.variables.items() if "layer" in variable.dims
            ]:
                # What an analysis computed for such a layer, a 0 most often, is no measurement.
                result[name] = result[name].where(result["attention_map"])
        attrs["note"] = note
        result.attrs = {
            **self.capture.attrs,
            **{key: value for key, value in attrs.items() if value != ""},
        }
        json.dumps(result.attrs)
        return result


def effect(samples: NDArray[Any]) -> dict[str, str]:
    """Return which heads have an effect (prompt, layer, head) that differs from 0, among all."""
    if len(samples) < LEAST_PROMPTS:
        return {"effect": "too_few", "effect_heads": ""}
    heads = labels(differs_from_zero(np.asarray(samples, dtype=float)))
    return {"effect": "supported" if heads else "not_supported", "effect_heads": " ".join(heads)}


def require(
    capture: xr.Dataset, needs: Iterable[str], analysis: str, attention: Collection[str] = ()
) -> None:
    """Refuse a capture that lacks a variable, or holds bins in place of tokens.

    Where ``attention`` names kinds of attention, every other kind is refused, too.
    """
    width = int(capture.attrs.get("bin_width", 1))
    if width > 1:
        raise NotApplicable(
            f"capture: {analysis} needs every token, but this capture holds bins of {width}; "
            "capture again without bins"
        )
    missing = [name for name in needs if name not in capture]
    if missing:
        raise NotApplicable(
            f"capture: {analysis} needs {', '.join(missing)}, which this capture does not hold; "
            f'run capture(model, prompts, **analyses.needs("{analysis}"))'
        )
    if attention:
        require_one_text(capture.attrs.get("attention", "self"), analysis, attention)


def require_prompts(capture: xr.Dataset, count: int) -> None:
    """Refuse a capture of other prompts than the ``count`` of the task."""
    if capture.sizes["prompt"] != count:
        raise NotApplicable(
            f"capture: it holds {capture.sizes['prompt']} prompts and the task has {count}; "
            "capture this task"
        )


def attending(capture: xr.Dataset) -> NDArray[np.bool_]:
    """Return which layers of a capture have an attention map (layer,)."""
    if "attention_map" not in capture.coords:
        return np.ones(capture.sizes["layer"], dtype=bool)
    return np.asarray(capture["attention_map"].values, dtype=bool)


def require_maps(capture: xr.Dataset, analysis: str) -> None:
    """Refuse a capture with layers that have no attention map."""
    has_map = attending(capture)
    if not has_map.all():
        layers = ", ".join(str(int(layer)) for layer in capture["layer"].values[~has_map])
        raise NotApplicable(
            f"attention_map: {analysis} follows attention through every layer, but there is none "
            f"in layer {layers}"
        )


def heads(capture: xr.Dataset) -> list[tuple[int, int]]:
    """List every (layer, head) of a capture that has an attention map, in order."""
    return [
        (int(layer), int(head))
        for layer in capture["layer"].values[attending(capture)]
        for head in capture["head"].values
    ]


def top(scores: NDArray[Any], count: int) -> list[tuple[int, int]]:
    """Return the (layer, head) positions of the ``count`` highest scores, best first.

    Heads without a score are never among them.

    >>> import numpy as np
    >>> top(np.array([[0.1, 0.9], [0.5, np.nan]]), 4)
    [(0, 1), (1, 0), (0, 0)]
    """
    ranked = np.argsort(np.where(np.isnan(scores), -np.inf, scores).ravel(), kind="stable")[::-1]
    count = min(count, int((~np.isnan(scores)).sum()))
    return [divmod(int(at), scores.shape[1]) for at in ranked[:count]]


def above(scores: NDArray[Any], least: float, most: int) -> list[tuple[int, int]]:
    """Return the (layer, head) of the scores above ``least``, best first: one at least.

    Where none passes, it is the best one alone; never more than ``most``. Heads without a score do
    not count.

    >>> import numpy as np
    >>> above(np.array([[0.1, 0.9], [0.7, 0.3]]), 0.5, 3)
    [(0, 1), (1, 0)]
    """
    return top(scores, min(max(int((scores > least).sum()), 1), most))


def marked(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """List the (layer, head) positions that are marked, in order."""
    return [(int(layer), int(head)) for layer, head in np.argwhere(chosen)]


def labels(chosen: NDArray[np.bool_]) -> list[str]:
    """List the heads that a mask (layer, head) holds, in order."""
    return [label(head) for head in marked(chosen)]


def named(scores: NDArray[Any], chosen: NDArray[np.bool_]) -> list[str]:
    """List the heads that their scores choose, the highest score first."""
    return [label(head) for head in top(scores, int(chosen.sum()))]


def first_few(names: Sequence[str], most: int = 8) -> str:
    """List names, of many the first few and how many more there are.

    >>> first_few(["L0H1", "L2H0", "L3H4"], 2)
    'L0H1, L2H0 and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def label(head: tuple[int, int]) -> str:
    """Return the name of a head."""
    return f"L{head[0]}H{head[1]}"


def parse_head(name: str) -> tuple[int, int]:
    """Return layer and head of a name such as L5H1.

    >>> parse_head(label((5, 1)))
    (5, 1)
    """
    parts = re.fullmatch(r"L(\d+)H(\d+)", name)
    if parts is None:
        raise InvalidInput(f"head: {name!r} is no head; give one such as L5H1")
    return int(parts[1]), int(parts[2])

"""Differences: two results or captures, head by head, with intervals."""

import json
from collections.abc import Collection, Sequence

import numpy as np
import xarray as xr

from headscope.analyses._interventions.screening import without_counts
from headscope.analyses._runtime.results import Results, labels
from headscope.analyses._stats.bootstrap import Array, bootstrap, draws, percentiles
from headscope.analyses._stats.rank_correlation import ranked
from headscope.kernels.errors import InvalidInput
from headscope.kernels.formatting import amount

# What of a score must be the same for a difference to have a meaning.
FIELDS = ("units", "convention", "options")
RESAMPLES = 1000
HEADS = ("layer", "head")


def compare(
    first: xr.Dataset,
    second: xr.Dataset,
    names: Sequence[str] | None = None,
    *,
    across: Collection[str] = (),
    seed: int = 0,
) -> xr.Dataset:
    """Compare two results, or two captures, head by head.

    Two models, two checkpoints of one, or two tasks. Scores that are kept prompt by prompt (a
    capture, `removed`) are compared pairwise where both have the same prompts, which is sharper;
    other prompts are resampled apart. Of means that carry an interval the half widths add as
    independent errors do.

    Parameters
    ----------
    first, second
        Results of the same analysis, or captures; numbers of tokens are averaged over.
    names
        Scores to compare; without names all scores of heads that both have.
    across
        Fields that may differ, of ``units``, ``convention`` and ``options``; for two tasks
        ``convention``, which names the task.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with, for each score, ``<score>`` (layer, head; second − first, with a 95 % interval as
    ``<score>_lower`` and ``_upper``) and ``<score>_agreement`` (Spearman's ρ over heads). The
    attribute ``pairing`` of a difference says how its interval was made, ``changed`` of the Dataset
    names the heads whose interval leaves out 0, and how many would by chance.

    Raises
    ------
    InvalidInput
        When layers, heads, units, conventions or options differ, or a score is not in both.

    Examples
    --------
    >>> from headscope.analyses.comparison import removed
    >>> from headscope.probes import load_model, tasks
    >>> model = load_model("headscope/bundled")
    >>> result = removed(model, tasks.make("ioi", model.tokenizer, n=2))
    >>> same = compare(result, result)
    >>> float(abs(same["lost"]).max()), same["lost"].attrs["pairing"]
    (0.0, 'paired by prompt')

    Source: From Language Modeling to Instruction Following; DiffLoRA.
    """
    stray = sorted(set(across) - set(FIELDS))
    if stray:
        raise InvalidInput(f"across: {stray[0]!r} is not one of {', '.join(FIELDS)}")
    _check_shapes(first, second, across)
    scores = list(names) if names is not None else _common(first, second)
    if not scores:
        raise InvalidInput("names: the two have no score of heads in common")
    digest = first.attrs.get("prompts_sha256")
    paired = digest is not None and digest == second.attrs.get("prompts_sha256")
    results = Results(xr.Dataset(), seed=seed)
    changed: dict[str, list[str]] = {}
    for name in scores:
        pair = [_score(side, name, which) for side, which in ((first, "first"), (second, "second"))]
        _check_meaning(name, pair[0], pair[1], across)
        *ends, how = _change(first, second, name, pair, paired, seed)
        attrs = pair[0].attrs
        attributes = {key: attrs[key] for key in ("convention",) if key in attrs}
        title = attrs.get("long_name", name)
        results.add_interval(
            name, HEADS, ends, f"{title}: second − first", attrs.get("units", ""), "diverging",
            pairing=how, **attributes,
        )  # fmt: skip
        means = [_mean(score) for score in pair]
        measured = ~(np.isnan(means[0]) | np.isnan(means[1]))
        results.add(
            f"{name}_agreement", (), ranked(means[0][measured], means[1][measured]),
            f"Agreement of the heads' ranks: {title}", "Spearman ρ", "diverging", -1, 1,
        )  # fmt: skip
        _, lower, upper = ends
        with np.errstate(invalid="ignore"):
            changed[name] = labels((lower > 0) | (upper < 0))
    count = int(measured.sum())
    return xr.Dataset(
        results.variables,
        coords={dim: first[dim].values for dim in HEADS if dim in first.coords},
        attrs={
            "first": _origin(first), "second": _origin(second), "seed": seed, "changed": changed,
            "note": "; ".join(f"{name}: {len(heads)} of {count} heads changed"
                              for name, heads in changed.items())
            + f"; by chance {amount(0.05 * count)} intervals of {count} leave out 0.",
        },
    )  # fmt: skip


def _check_shapes(first: xr.Dataset, second: xr.Dataset, across: Collection[str]) -> None:
    for dim in HEADS:
        first_size, second_size = (side.sizes.get(dim, 0) for side in (first, second))
        if first_size != second_size:
            raise InvalidInput(
                f"{dim}: {first_size} in the first and {second_size} in the second; heads cannot "
                "be matched, so compare models of one shape"
            )
    maps = [
        side["attention_map"].values.tolist() if "attention_map" in side.coords else None
        for side in (first, second)
    ]
    if maps[0] != maps[1]:
        raise InvalidInput("attention_map: other layers have one in the second than in the first")
    kinds = [side.attrs.get("analysis") for side in (first, second)]
    if kinds[0] != kinds[1]:
        raise InvalidInput(f"analysis: {kinds[0]} and {kinds[1]}; compare results of the same one")
    if "options" in across:
        return
    options = [json.loads(side.attrs.get("options") or "{}") for side in (first, second)]
    for name in sorted({*options[0], *options[1]} - {"seed"}):
        values = [choices.get(name) for choices in options]
        if values[0] != values[1]:
            raise InvalidInput(
                f"options: {name} is {values[0]!r} in the first and {values[1]!r} in the second; "
                "run both alike"
            )


def _by_head(array: xr.DataArray) -> bool:
    """Return whether an array holds a score of heads, of which the other dims can be averaged."""
    return {*HEADS} <= set(array.dims) <= {*HEADS, "prompt", "query", "key"}


def _common(first: xr.Dataset, second: xr.Dataset) -> list[str]:
    """List the scores of heads that both have."""
    return [
        str(name)
        for name in first.data_vars
        if name in second.data_vars
        and _by_head(first[name])
        and first[name].dtype.kind == "f"
        and "interval_of" not in first[name].attrs
    ]


def _score(side: xr.Dataset, name: str, which: str) -> xr.DataArray:
    """Return a score with the dims layer, head, and prompt before them where it has it."""
    if name not in side.data_vars:
        raise InvalidInput(
            f"{name}: not in the {which}; it has {', '.join(map(str, side.data_vars))}"
        )
    array = side[name]
    if not _by_head(array):
        raise InvalidInput(f"{name}: dims {array.dims}; only scores of heads can be compared")
    along = [dim for dim in ("query", "key") if dim in array.dims]
    if along:
        array = array.mean(along, keep_attrs=True)
    return array.transpose("prompt", *HEADS, missing_dims="ignore")


def _check_meaning(
    name: str, first: xr.DataArray, second: xr.DataArray, across: Collection[str]
) -> None:
    for field in ("units", "convention"):
        pair = first.attrs.get(field, ""), second.attrs.get(field, "")
        if field not in across and without_counts(pair[0]) != without_counts(pair[1]):
            raise InvalidInput(
                f"{field}: of {name} it is {pair[0]!r} in the first and {pair[1]!r} in the second; "
                f"allow that with across={field!r} (--across {field}; May differ on the screen "
                "Compare) if a difference still has a meaning"
            )


def _change(
    first: xr.Dataset,
    second: xr.Dataset,
    name: str,
    pair: Sequence[xr.DataArray],
    paired: bool,
    seed: int,
) -> tuple[Array, Array, Array, str]:
    """Return the difference, both ends of its interval, and how that was made."""
    by_prompt = ["prompt" in score.dims for score in pair]
    if all(by_prompt):
        first_samples, second_samples = (samples.values.astype(np.float64) for samples in pair)
        if paired and len(first_samples) == len(second_samples):
            return *bootstrap(second_samples - first_samples, seed=seed), "paired by prompt"
        change = bootstrap(second_samples)[0] - bootstrap(first_samples)[0]
        if min(len(first_samples), len(second_samples)) < 2:
            missing = np.full(change.shape, np.nan)
            return change, missing, missing, "one prompt has no interval"
        sides = [
            np.tensordot(draws(len(samples), RESAMPLES, seed + at) / len(samples), samples, 1)
            for at, samples in enumerate((first_samples, second_samples))
        ]
        return change, *percentiles(sides[1] - sides[0], 0.025), "other prompts, resampled apart"
    change = _mean(pair[1]) - _mean(pair[0])
    halves = []
    for side, array in zip((first, second), pair, strict=True):
        if "prompt" in array.dims:
            _, low, high = bootstrap(array.values.astype(np.float64), seed=seed)
        elif f"{name}_lower" in side:
            low, high = (
                side[f"{name}_{end}"].transpose(*HEADS).values.astype(np.float64)
                for end in ("lower", "upper")
            )
        else:
            missing = np.full(change.shape, np.nan)
            return change, missing, missing, "no interval: the score has none"
        halves.append((high - low) / 2)
    half = np.sqrt(halves[0] ** 2 + halves[1] ** 2)
    return change, change - half, change + half, "unpaired, from the intervals of both means"


def _mean(array: xr.DataArray) -> Array:
    mean = array.mean("prompt") if "prompt" in array.dims else array
    return np.asarray(mean.values, dtype=np.float64)


def _origin(side: xr.Dataset) -> dict[str, object]:
    fields = ("model", "revision", "task", "prompts_sha256", "n_prompts", "analysis")
    return {name: side.attrs[name] for name in fields if name in side.attrs}

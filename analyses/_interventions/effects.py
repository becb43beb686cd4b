"""Causal numbers measured once: the metric of a prompt with heads ablated, and its gradients.

An effect is keyed by the model, the prompt with its questions, the metric, what stands in for the
heads, and the heads. Analyses that ask for the same effect share it. A table with a folder keeps
them there as they are measured, so that they outlive the process and an interrupted sweep goes on
where it was.

A table in bfloat16 measures with the products of the model in that format, and a sample of the sets
in float32 too, which says how far the two agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.dtype_agreement import Agreement, compare
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.analyses._runtime.results import labels
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage import dataset_file

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

Array = NDArray[np.float64]
# Measures with a model, on prompts (by number), sets of heads: (measure, prompt, set).
Sweep = Callable[["Model", list[int], "Bool[Tensor, 'set layer head']"], Array]
DTYPES = ("float32", "bfloat16")

# Sets between two writes; every part of a sweep runs the clean prompts once more.
TOGETHER = 128
# Sets that are measured in float32 beside bfloat16, once for every metric and prompts.
SAMPLE = 16


class EffectsTable:
    """Effects that are known, in memory and, with a folder, on disk: a file a kind of effect.

    ``agreements`` says of every metric and prompts how far bfloat16 agrees with float32; ``used``
    names those that were asked for since it was last cleared.
    """

    def __init__(self, folder: Path | None = None, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise InvalidInput(f"dtype: no {dtype!r}; choose one of {', '.join(DTYPES)}")
        self.folder, self.dtype = folder, dtype
        self.agreements: dict[str, Agreement] = {}
        self.used: list[str] = []
        self._kinds: dict[str, dict[tuple[str, str], float]] = {}
        # By the id of a module, which stays taken as long as the model is kept.
        self._reduced: dict[int, tuple[Model, Model]] = {}

    def reduced(self, model: Model) -> Model:
        """Return a model in bfloat16, made once."""
        from headscope.probes.models.reduced_precision import in_bfloat16

        if id(model.module) not in self._reduced:
            self._reduced[id(model.module)] = model, in_bfloat16(model)
        return self._reduced[id(model.module)][1]

    def complete(
        self,
        kinds: Sequence[dict[str, Any]],
        prompts: Sequence[Sequence[str]],
        sets: Sequence[str],
        sweep: Callable[[list[int], list[int]], Array],
        together: int,
    ) -> Array:
        """Return effects (kind, prompt, set), measuring those that are not known.

        ``kinds`` describe what is measured together by one sweep; ``prompts`` are digests of the
        prompts, by kind. A sweep has ``together`` sets at most.
        """
        tables = [self._load(kind) for kind in kinds]
        measured: NDArray[np.bool_] = np.array([
            [[(prompt, name) in table for name in sets] for prompt in of_kind]
            for table, of_kind in zip(tables, prompts, strict=True)
        ])  # fmt: skip
        _, rows, columns = map(np.unique, (~measured).nonzero())
        parts = [columns[at : at + together] for at in range(0, len(columns), together)]
        for part in parts:
            scores = sweep(rows.tolist(), part.tolist())
            for kind, table, of_kind, values in zip(kinds, tables, prompts, scores, strict=True):
                for row, of_prompt in zip(rows, values, strict=True):
                    names = [(of_kind[row], sets[column]) for column in part]
                    table |= dict(zip(names, of_prompt.tolist(), strict=True))
                self._save(kind)
        return np.array([
            [[table[prompt, name] for name in sets] for prompt in of_kind]
            for table, of_kind in zip(tables, prompts, strict=True)
        ])  # fmt: skip

    def _load(self, kind: dict[str, Any]) -> dict[tuple[str, str], float]:
        key = _digest(kind)
        if key not in self._kinds:
            self._kinds[key] = {}
            if self.folder is not None and (self.folder / f"{key}.safetensors").is_file():
                effect = dataset_file.load(self.folder / f"{key}.safetensors")["effect"]
                rows, columns = np.isfinite(effect.values).nonzero()
                prompts, sets = effect["prompt"].values[rows], effect["set"].values[columns]
                names = zip(prompts.tolist(), sets.tolist(), strict=True)
                values = effect.values[rows, columns].tolist()
                self._kinds[key] = dict(zip(names, values, strict=True))
        return self._kinds[key]

    def _save(self, kind: dict[str, Any]) -> None:
        if self.folder is None:
            return
        key = _digest(kind)
        table = self._kinds[key]
        prompts, sets = (list(dict.fromkeys(name[at] for name in table)) for at in (0, 1))
        values = np.full((len(prompts), len(sets)), np.nan)
        rows, columns = ({name: at for at, name in enumerate(names)} for names in (prompts, sets))
        for (prompt, name), value in table.items():
            values[rows[prompt], columns[name]] = value
        dataset_file.make_folder(self.folder)
        dataset_file.save(
            xr.Dataset(
                {"effect": (("prompt", "set"), values)},
                coords={"prompt": prompts, "set": sets},
                attrs=kind,
            ),
            self.folder / f"{key}.safetensors",
        )


_TABLE: ContextVar[EffectsTable | None] = ContextVar("effects", default=None)


@contextmanager
def sharing(table: EffectsTable) -> Iterator[EffectsTable]:
    """Share a table among the ablations inside: they read it, and add what they measure."""
    token = _TABLE.set(table)
    try:
        yield table
    finally:
        _TABLE.reset(token)


def shared(
    model: Model,
    task: EncodedTask,
    measures: Sequence[Any],
    sets: Bool[Tensor, "set layer head"],
    values: Float[Tensor, ...] | None,
    first: int,
    sweep: Sweep,
    gradient: str = "",
) -> Array:
    """Return the measures of a sweep (measure, prompt, set), as far as known from the table.

    The parameters are those of `ablation.ablate_sets`; ``gradient`` names what is measured where it
    is one, of all heads at once. What is not the metric of answers, and what is measured outside
    `sharing`, is measured every time.
    """
    import torch

    table, rows = _TABLE.get(), list(range(len(task)))
    if table is None or not all(isinstance(measure, AnswerMetric) for measure in measures):
        return sweep(model, rows, sets)
    by_prompt = values is not None and values.ndim > 3
    stand_in = "zero" if values is None else "other prompts" if by_prompt else _digest(values)
    kinds = [
        {
            "model": model.name, "revision": model.revision, "dtype": str(model.dtype),
            "metric": measure.name, "ablation": stand_in, "first": first,
            **({"gradient": gradient} if gradient else {}),
        }
        for measure in measures
    ]  # fmt: skip
    value_digests = [_digest(values[row]) if by_prompt else "" for row in rows]  # type: ignore[index]
    prompts = [
        [
            _digest([list(task.ids[row]), repr(measure.questions[row]), value_digests[row]])
            for row in rows
        ]
        for measure in measures
    ]
    # The intact model is a set without heads.
    everything = torch.cat([sets, torch.zeros_like(sets[:1])])
    names = ["+".join(labels(chosen)) for chosen in everything.numpy()]

    together = len(names) if gradient else TOGETHER

    def measured(measuring: Model, chosen: Sequence[int], **changed: str) -> Array:
        chosen_sets = everything[list(chosen)]
        return table.complete(
            [kind | changed for kind in kinds], prompts, [names[at] for at in chosen],
            lambda rows, part: sweep(measuring, rows, chosen_sets[part]), together,
        )  # fmt: skip

    count = len(sets)
    if table.dtype == "float32" or gradient or not count:
        return measured(model, range(count))
    low = measured(table.reduced(model), range(count + 1), dtype=table.dtype)
    key = _digest([model.revision, measures[0].name, [list(ids) for ids in task.ids]])
    sample: list[int] = []
    if key not in table.agreements:
        sample = np.random.default_rng(0).permutation(count)[:SAMPLE].tolist()
    exact_values = measured(model, [*sample, count])
    changes = [scores[..., -1:] - scores[..., :-1] for scores in (low, exact_values)]
    if sample:
        pair = changes[0][0][:, sample], changes[1][0]
        table.agreements[key] = compare(*pair, measures[0].name)
    table.used.append(key)
    # What rounding does to the intact model is in every number, and cancels in the changes.
    shifted = exact_values[..., -1:] - changes[0]
    exact = np.array([measure.name == "accuracy" for measure in measures])[:, None, None]
    return np.where(exact, low[..., :-1], shifted)


def shared_edges(
    model: Model,
    task: EncodedTask,
    metric: str,
    edges: Sequence[str],
    sweep: Callable[[list[int], list[int]], Array],
) -> Array:
    """Return the metric with one edge patched at a time (prompt, edge), as far as known.

    ``sweep`` measures some prompts and some edges, given by their numbers.
    """
    table, rows = _TABLE.get(), list(range(len(task)))
    if table is None:
        return sweep(rows, list(range(len(edges))))
    kind = {
        "model": model.name, "revision": model.revision, "dtype": str(model.dtype),
        "metric": metric, "ablation": "edge patched from the corrupted prompt",
    }  # fmt: skip
    prompts = [
        _digest([list(task.ids[row]), list(task.corrupted_ids[row]), repr(task.questions[row])])
        for row in rows
    ]
    values = table.complete(
        [kind], [prompts], edges, lambda numbers, part: sweep(numbers, part)[None], TOGETHER
    )
    return np.asarray(values[0])


def _digest(value: Any) -> str:
    """Return a short digest of numbers, or of what JSON can hold."""
    with suppress(AttributeError):
        value = value.contiguous().cpu().numpy()
        return f"{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

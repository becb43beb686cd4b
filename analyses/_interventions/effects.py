"""Causal numbers measured once: the metric of a prompt with heads ablated, and its gradients.

An effect is keyed by the model, the prompt with its questions, the metric, what stands in for the
heads, and the heads. Analyses that ask for the same effect share it. A table with a folder keeps
them there as they are measured, so that they outlive the process and an interrupted sweep goes on
where it was.
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

from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.analyses._runtime.results import labels
from headscope.probes.storage import dataset_file

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

Array = NDArray[np.float64]
# Measures sets of heads (by number) on prompts (by number): (measure, prompt, set).
Sweep = Callable[[list[int], list[int]], Array]

# Sets between two writes; every part of a sweep runs the clean prompts once more.
TOGETHER = 128


class EffectsTable:
    """Effects that are known, in memory and, with a folder, on disk: a file a kind of effect."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kinds: dict[str, dict[tuple[str, str], float]] = {}

    def complete(
        self,
        kinds: Sequence[dict[str, Any]],
        prompts: Sequence[Sequence[str]],
        sets: Sequence[str],
        sweep: Sweep,
        together: int,
    ) -> Array:
        """Return effects (kind, prompt, set), measuring those that are not known.

        ``kinds`` describe what is measured together by one sweep; ``prompts`` are digests of the
        prompts, by kind. A sweep has ``together`` sets at most.
        """
        tables = [self._load(kind) for kind in kinds]
        known: NDArray[np.bool_] = np.array([
            [[(prompt, name) in table for name in sets] for prompt in of_kind]
            for table, of_kind in zip(tables, prompts, strict=True)
        ])  # fmt: skip
        _, rows, columns = map(np.unique, (~known).nonzero())
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
                held = dataset_file.load(self.folder / f"{key}.safetensors")["effect"]
                rows, columns = np.isfinite(held.values).nonzero()
                prompts, sets = held["prompt"].values[rows], held["set"].values[columns]
                names = zip(prompts.tolist(), sets.tolist(), strict=True)
                values = held.values[rows, columns].tolist()
                self._kinds[key] = dict(zip(names, values, strict=True))
        return self._kinds[key]

    def _save(self, kind: dict[str, Any]) -> None:
        if self.folder is None:
            return
        key = _digest(kind)
        table = self._kinds[key]
        prompts, sets = (list(dict.fromkeys(name[at] for name in table)) for at in (0, 1))
        values = np.full((len(prompts), len(sets)), np.nan)
        rows, columns = ({name: at for at, name in enumerate(each)} for each in (prompts, sets))
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
def sharing(table: EffectsTable) -> Iterator[None]:
    """Let the ablations inside read a table, and write what they measure into it."""
    token = _TABLE.set(table)
    try:
        yield
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
    table, everything = _TABLE.get(), (list(range(len(task))), list(range(len(sets))))
    if table is None or not all(isinstance(each, AnswerMetric) for each in measures):
        return sweep(*everything)
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
    own = [_digest(values[row]) if by_prompt else "" for row in range(len(task))]  # type: ignore[index]
    prompts = [
        [
            _digest([list(task.ids[row]), repr(measure.questions[row]), own[row]])
            for row in range(len(task))
        ]
        for measure in measures
    ]
    names = ["+".join(labels(chosen)) for chosen in sets.numpy()]
    return table.complete(kinds, prompts, names, sweep, len(names) if gradient else TOGETHER)


def _digest(value: Any) -> str:
    """Return a short digest of numbers, or of what JSON can hold."""
    with suppress(AttributeError):
        value = value.contiguous().cpu().numpy()
        return f"{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

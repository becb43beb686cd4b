"""Record attention statistics while a model generates text with its key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor
from transformers import DynamicCache

from headscope.kernels import statistics
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.attention.forward import Reader
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.capturing.options import CaptureOptions, resolve_options
from headscope.probes.capturing.recorder import Recorder
from headscope.probes.models.loading import load_model
from headscope.probes.models.model import Model
from headscope.probes.prompts.prompt_batch import Prompts
from headscope.probes.prompts.reading import read

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.prompts.reading import PromptsLike

DEFAULT = ("lse", "entropy", "max_weight", "first_mass", "span_mass", "topk", "topk_key")

Array = npt.NDArray[np.float32]
# Options of Hugging Face's ``generate`` that would make rows of several texts, of another pass or
# of another cache, and the values that leave them off.
UNFOLLOWED = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "guidance_scale": 1,
    "use_cache": True, "return_dict_in_generate": False, "penalty_alpha": 0,
    "cache_implementation": None, "dola_layers": None, "prompt_lookup_num_tokens": None,
    "assistant_model": None, "assistant_early_exit": None, "past_key_values": None,
    "inputs_embeds": None, "attention_mask": None,
}  # fmt: skip


def generate(
    model: Any,
    prompts: PromptsLike,
    stats: Sequence[str] = DEFAULT,
    edits: Sequence[Edit] = (),
    *,
    new_tokens: int = 32,
    prefix: int = 0,
    prefill_edited: bool = True,
    sample: bool = False,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    first: int = 1,
    offsets: Sequence[int] = (0, 1),
    clip: int | None = None,
    recent: int = 64,
    share: float = 0.9,
    k: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Generate from prompts, and record every head's attention at every step.

    The model keeps its keys and values, so a step costs one row; the rows together are those of a
    capture of the finished text. ``span_mass`` tells the prompt from what was generated: lookback
    (Chuang et al. 2024, Lookback Lens) is the share of the first in both.

    Parameters
    ----------
    model
        A causal language model from `load_model`, or whatever `load_model` takes.
    prompts
        A text, texts, lists of token ids, or a task.
    stats
        Statistics with one result for every query, and ``received``.
    edits
        Edits on the heads, at the prompt and at every step.
    new_tokens
        Tokens to generate, at most; an end-of-text token ends a prompt earlier.
    prefix
        Last tokens of every prompt that begin the answer: ``span_mass`` counts them as generated.
    prefill_edited
        Whether the edits hold for the whole prompt; else from its last token on, which decides the
        first new one, so that keys and values of the rest are the clean model's.
    sample
        Whether tokens are drawn by their probability; else the most probable is taken.
    seed
        Seed of the draws.
    options
        More options of Hugging Face's ``generate``, such as ``{"temperature": 0.7}``.
    first, offsets, clip, recent, share, k
        As in `capture`.
    progress
        Called with the number of prompts done and their total.

    Returns
    -------
    As `capture` of the finished texts, with the coordinate ``generated`` (prompt, query): True at
    tokens that the model wrote.

    Raises
    ------
    NotApplicable
        For a statistic that needs the whole text at once, a prompt that would outgrow the context,
        a model that does not generate, edits that do not fit.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> capture = generate(model, [[0, 5, 6, 5]], stats=("entropy",), new_tokens=3)
    >>> capture["entropy"].sizes["query"], int(capture["generated"].sum())
    (7, 3)
    """
    loaded = load_model(model)
    if loaded.attention != "self":
        raise NotApplicable(
            f"model: {loaded.name} has an encoder and a decoder; use capture with a Pair"
        )
    names = _names(stats)
    batch = read(loaded, prompts)
    _refuse_unfit(loaded, batch, new_tokens, prefix)
    _refuse_unfollowed(loaded, options or {})
    for edit in edits:
        edit.check(loaded.geometry)
    resolved = resolve_options(
        loaded,
        1,
        names,
        (),
        edits,
        first=first,
        offsets=offsets,
        clip=clip,
        recent=recent,
        share=share,
        k=k,
    )
    settings = {"do_sample": sample, "max_new_tokens": int(new_tokens), **(options or {})}
    runs = []
    for done, ids in enumerate(batch.ids):
        edited = 0 if prefill_edited else len(ids)
        runs.append(Steps(resolved, len(ids) - prefix, edited).run(loaded, ids, settings, seed))
        if progress is not None:
            progress(done + 1, len(batch.ids))
    finished = replace(batch, ids=tuple(steps.ids for steps in runs))
    spans = {
        "prompt": [list(range(steps.start)) for steps in runs],
        "generated": [list(range(steps.start, len(steps.ids))) for steps in runs],
    }
    recorder = Recorder(loaded, finished, replace(resolved, spans=spans))
    recorder.writer.allocate()
    for row, steps in enumerate(runs):
        for call in steps.layers.values():
            recorder.layers.note(call)
        for name in names:
            array = recorder.writer.arrays[name]
            array[row] = steps.joined(name, array.shape[1:])
    dataset = recorder.dataset()
    dataset.attrs.update(
        sample=bool(sample), sampling_seed=int(seed), prefill_edited=bool(prefill_edited)
    )
    position = xr.DataArray(np.arange(dataset.sizes["query"]), dims="query")
    starts = xr.DataArray([len(ids) for ids in batch.ids], dims="prompt")
    generated = (position >= starts) & (position < dataset["length"])
    return dataset.assign_coords(generated=generated.transpose("prompt", "query"))


@dataclass
class Steps:
    """The steps of one prompt: the rows that each gave, layer by layer.

    ``start`` counts the tokens of the prompt before the answer begins. The edits hold for passes
    that see ``edited`` keys or more; what comes before them is a pass of its own.
    """

    options: CaptureOptions
    start: int
    edited: int = 0
    ids: tuple[int, ...] = ()
    layers: dict[int, AttentionCall] = field(default_factory=dict)
    rows: list[tuple[AttentionCall, dict[str, Array]]] = field(default_factory=list)

    def run(
        self, model: Model, ids: Sequence[int], settings: Mapping[str, Any], seed: int
    ) -> Steps:
        """Generate, and give the last token its row as well."""
        module: Any = model.module
        # Without the model's config every layer keeps all keys, also those behind its window; with
        # it, layers without attention keep the state that they need.
        cache = DynamicCache(config=module.config) if model.geometry.without else DynamicCache()
        prompt_ids = torch.tensor([list(ids)], device=model.device)
        ends = module.generation_config.eos_token_id
        filler = ends[0] if isinstance(ends, list) else ends
        with torch.no_grad(), torch.random.fork_rng(), intercept_attention(model, self.attend):
            torch.manual_seed(seed)
            if self.edited > 1:
                module(
                    input_ids=prompt_ids[:, : self.edited - 1],
                    past_key_values=cache,
                    use_cache=True,
                )
            written = module.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                past_key_values=cache,
                use_cache=True,
                pad_token_id=0 if filler is None else filler,
                **settings,
            )
            module(input_ids=written[:, -1:], past_key_values=cache, use_cache=True)
        self.ids = tuple(written[0].tolist())
        return self

    def attend(self, call: AttentionCall) -> Tensor:
        """Compute one layer at one step, and record its rows."""
        keys = call.key.shape[2]
        spans = (torch.arange(keys) >= self.start).long()[None]
        request = self.options.request_for(None, spans)
        edits = self.options.edits if keys >= self.edited else ()
        return Reader(request, edits, self._take)(call)

    def _take(self, call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        self.layers[call.layer] = call
        stats = [name for name in outputs if name != "z"]
        self.rows.append((call, {name: outputs[name][0].float().cpu().numpy() for name in stats}))

    def joined(self, name: str, shape: tuple[int, ...]) -> Array:
        """Join the rows of all steps: (layer, head, *dims of the statistic)."""
        # Later keys, bins and spans hold nothing of an earlier row; NaN is left beyond the text.
        joined = np.full(shape, np.nan, dtype=np.float32)
        length, by_query = len(self.ids), statistics.load(name).by_query
        total = np.zeros(shape, dtype=np.float64)
        count = np.zeros((shape[0], 1, shape[2]))
        for call, row in self.rows:
            values, stop = row[name], call.key.shape[2]
            if by_query:
                rows = joined[call.layer, :, stop - values.shape[1] : stop]
                if rows.ndim > 2:
                    rows[:] = 0.0
                if name == "span_mass":
                    values = np.nan_to_num(values)
                rows[tuple(map(slice, values.shape))] = values
            else:
                query_counts = _queries_of_keys(call)
                total[call.layer, :, :stop] += np.nan_to_num(values) * query_counts
                count[call.layer, :, :stop] += query_counts
        if not by_query:
            joined[:, :, :length] = (total / np.where(count, count, np.nan))[:, :, :length]
        if name == "pattern":
            joined[:, :, :, length:] = np.nan
        if name == "distance_hist":
            bins = statistics.load(name).labels["bin"](self.options.request, length)
            joined[..., len(bins) :] = np.nan
        return joined


def _queries_of_keys(call: AttentionCall) -> npt.NDArray[np.float64]:
    """Count the queries of one step whose weights reach each key."""
    variant = call.variant()
    visibility = variant.visibility(call.query.shape[2], call.key.shape[2], call.query.device)
    counted: npt.NDArray[np.float64] = visibility.query_counts[0].cpu().double().numpy()
    return counted


def _names(stats: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stats, str):
        raise InvalidInput("stats: give a tuple of names, such as ('entropy',)")
    stats = tuple(map(statistics.resolve, stats))
    for name in stats:
        by_query = statistics.load(name).by_query
        if name in ("z", "target_mass") or not (by_query or name == "received"):
            raise NotApplicable(
                f"stats: {name} needs the whole text at once; generate first, then "
                "capture(model, [ids], ...) of the finished text"
            )
    return tuple(dict.fromkeys(stats))


def _refuse_unfit(model: Model, prompts: Prompts, new_tokens: int, prefix: int) -> None:
    if new_tokens < 1:
        raise InvalidInput(f"new_tokens: {new_tokens}; give 1 or more")
    shortest = min(map(len, prompts.ids))
    if not 0 <= prefix < shortest:
        raise InvalidInput(
            f"prefix: {prefix} tokens; give 0 to {shortest - 1}, inside every prompt"
        )
    if not model.module.can_generate():
        raise NotApplicable(f"model: {model.architecture} does not generate text; use capture")
    model.check_predicts()
    if model.geometry.without and getattr(model.module.config, "sliding_window", None):
        raise NotApplicable(
            f"model: {model.architecture} mixes windows with layers that have no attention, and "
            "its cache drops keys; generate first, then capture the finished text"
        )
    model.check_lengths([len(ids) + new_tokens for ids in prompts.ids])
    switch = model.rope_switch
    for at, ids in enumerate(prompts.ids):
        if switch is not None and len(ids) <= switch < len(ids) + new_tokens:
            raise NotApplicable(
                f"new_tokens: prompt {at + 1} would grow from {len(ids)} to "
                f"{len(ids) + new_tokens} tokens, and {model.name} turns its keys by other "
                f"frequencies beyond {switch}; what is cached would be wrong. Ask for "
                f"{switch - len(ids)} tokens at most, or capture the finished text"
            )


def _refuse_unfollowed(model: Model, options: Mapping[str, Any]) -> None:
    """Refuse options of the call or of the model's generation_config that rows cannot follow."""
    config = model.module.generation_config
    for name, off in UNFOLLOWED.items():
        for value, source in (
            (options.get(name), "options"),
            # Of the model's own, what the call sets anyway is not asked.
            (None if name == "use_cache" else getattr(config, name, None), "generation_config"),
        ):
            if value is not None and (off is None or value != off):
                raise InvalidInput(
                    f"{source}: {name}={value!r} cannot be followed while attention is recorded; "
                    "leave it out, or generate first and capture the finished text"
                )

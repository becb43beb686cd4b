"""Record attention statistics of every head as one Dataset, and plan the memory for it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.probes.capturing.memory_estimate import Plan, estimate_memory
from headscope.probes.capturing.options import resolve_options
from headscope.probes.capturing.recorder import Recorder
from headscope.probes.models.loading import load_model
from headscope.probes.prompts.reading import read
from headscope.probes.storage import dataset_file, incremental

if TYPE_CHECKING:
    from headscope.probes.capturing.spans import SpansLike
    from headscope.probes.capturing.targets import TargetsLike
    from headscope.probes.interventions.base import Edit
    from headscope.probes.prompts.reading import PromptsLike


def capture(
    model: Any,
    prompts: PromptsLike,
    stats: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    edits: Sequence[Edit] = (),
    *,
    first: int = 1,
    offsets: Sequence[int] = (0, 1),
    targets: TargetsLike | None = None,
    tile: int | None = None,
    clip: int | None = None,
    recent: int = 64,
    spans: SpansLike | None = None,
    share: float = 0.9,
    k: int = 8,
    horizon: tuple[int, int] = (1, 64),
    last: int = 64,
    bins: int | None = None,
    batch_tokens: int | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Record statistics of every head's attention in one pass, without any N×N map.

    Prompts of similar lengths share a batch, at most 10 % of it padding, where a test of the model
    shows that this changes no number beyond rounding, and where there are no edits. Padding enters
    no statistic; in the Dataset prompts start together at position 0 and hold NaN beyond their
    length.

    Parameters
    ----------
    model
        A model from `load_model`, or whatever `load_model` takes.
    prompts
        A text, texts, lists of token ids, or a task; for the decoder or the cross-attention of an
        encoder–decoder model a `headscope.probes.Pair` of them, or several. For a model that reads
        images, arrays of its pixel_values (channel, height, width), or files and PIL images where
        the model has its image processor; of one size.
    stats
        Statistics, by name (`headscope.kernels.statistics.names`); without it those of ``DEFAULT``
        that the attention has. Statistics that compare the places of query and key are refused for
        cross-attention.
    keep
        Activations to keep: ``q`` and ``k`` after their rotation (both of them bring ``lse``, so
        that `pattern` can recompute any window), ``v``, ``z`` (output of every head, after the
        edits), ``resid`` (the residual stream before each block and after the last, dims prompt,
        boundary, query, channel).
    edits
        Edits on the heads, applied in order (`headscope.probes.interventions`).
    first
        Number of first keys in ``first_mass``, which ``span_without_first`` leaves out.
    offsets
        Distances in ``offset_mass``: the key at query - offset.
    targets
        Keys of ``target_mass``: rules of `capturing.targets`, or a mapping from a name to
        lists of keys per prompt and query. Without it every rule that applies.
    tile
        Tokens a tile of ``pooled_mean`` and ``pooled_max``; 16, doubled until the longest prompt
        has 64 tiles.
    clip
        Largest distance that counts in ``distance`` and ``distance_variance``, in tokens.
    recent
        Number of last keys in ``recent_mass``, the query itself included.
    spans
        Tokens of ``span_mass``: a mapping from a name to lists of positions per prompt, or names
        of roles of the task. Without it every role of the task. Spans may overlap.
    share
        Share of the mass that ``effective_span`` and ``span_without_first`` hold, between 0 and 1.
    k
        Number of keys in ``topk`` and ``topk_key``.
    horizon
        Nearest and farthest distance of the later queries in ``received_later``, in tokens.
    last
        Number of last queries in ``received_last``.
    bins
        Bins of queries and keys, at most, for prompts too long to keep every token: a statistic
        then holds the mean of the tokens of each bin (``received_max`` the largest), the coords
        ``query`` and ``key`` its first token, and token and token_id the dim position.
    batch_tokens
        Tokens in one forward pass, at most, or one prompt. Without it 8192, and fewer where they
        would need more than 80 % of the available memory (`plan`).
    out
        File to write to as the capture goes (its folder is made), for captures larger than memory;
        the Dataset then reads from it. An interrupted capture of the same prompts and options is
        taken up where it was, with the same result.
    overwrite
        Replace the file, and drop half a file of another capture.
    progress
        Called after every layer with the tokens done, counted in each layer, and their total.

    Returns
    -------
    One variable per statistic, dims prompt, layer, head and its own (query, key, query_tile,
    key_tile, offset, target, span, bin, rank), float32; the activations kept, with dims head or
    kv_head, query or key, size. Coords: layer, head, kv_head, kv_group (the kv head that a head
    reads), token and token_id (prompt, query), length (prompt), offset, target, span, bin (its
    smallest distance), rank, and per layer causal, logit_scale, window and softcap (NaN where there
    is none). A model with learned sinks has their ``sink_logit`` (layer, head): weights of its keys
    sum to less than 1, and ``learned_sink_mass`` is the rest. One with ALiBi has ``alibi_slope``
    (layer, head), by which a token of distance lowers a logit. A model with other layers, such as
    Mamba's, has ``attention_map`` (layer), False where there is none and every number is NaN. The
    tokens of an image are [CLS] and the like and its patches, r0c0, r0c1, ... row by row;
    ``pixels`` (prompt, colour, height, width) is what the model read. In cross-attention ``query``
    runs over the target and ``key`` over the source, with key_token and key_token_id (prompt, key)
    and key_length (prompt); a decoder's self-attention has the source's source_token_id (prompt,
    source) and source_length (prompt). Where q and k are kept of a model with a relative position
    bias, position_bias (layer, head, relative) holds it, relative being key - query. Attrs carry
    the provenance.

    Raises
    ------
    HeadscopeError
        For an unknown statistic, an empty or too long prompt, targets, spans or edits that do not
        fit, a model that is refused at load or gives NaN, a file that cannot be written, and, with
        the numbers, what does not fit into memory.

    Examples
    --------
    >>> from headscope.probes import capture, load_model
    >>> model = load_model("headscope/bundled")
    >>> capture(model, [[0, 5, 6, 5]], stats=("entropy",))["entropy"].dims
    ('prompt', 'layer', 'head', 'query')
    """
    if out is not None and Path(out).exists() and not overwrite:
        raise InvalidInput(f"out: {out} exists; choose another file, or overwrite=True")
    recorder = _recorder(
        model,
        prompts,
        stats,
        keep,
        edits,
        first=first,
        offsets=offsets,
        targets=targets,
        tile=tile,
        clip=clip,
        recent=recent,
        spans=spans,
        share=share,
        k=k,
        horizon=horizon,
        last=last,
        bins=bins,
    )
    if out is not None:
        return _to_file(recorder, Path(out), batch_tokens, overwrite, progress)
    planned = estimate_memory(recorder, batch_tokens, streamed=False)
    planned.check()
    recorder.writer.allocate()
    recorder.record(planned.batch_tokens, progress)
    return recorder.dataset()


def plan(
    model: Any,
    prompts: PromptsLike,
    stats: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    edits: Sequence[Edit] = (),
    *,
    batch_tokens: int | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Plan:
    """Estimate the memory and disk space of a capture without running it.

    The parameters are those of `capture`, and what it refuses is refused, except for what does not
    fit into memory. As text, what is returned is a table of the bytes.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> needed = plan(load_model("headscope/bundled"), [list(range(100))], out="big.safetensors")
    >>> needed.streamed, needed.fits()
    (True, True)
    """
    for name in ("overwrite", "progress"):  # of no weight for the memory
        options.pop(name, None)
    recorder = _recorder(model, prompts, stats, keep, edits, **options)
    return estimate_memory(recorder, batch_tokens, streamed=out is not None)


def stored_bytes(
    model: Any,
    prompts: PromptsLike,
    stats: Sequence[str],
    keep: Sequence[str],
    **options: Any,
) -> int:
    """Count the bytes of the arrays of a capture; the parameters are those of `capture`."""
    recorder = _recorder(model, prompts, stats, keep, (), **options)
    return 4 * sum(map(math.prod, recorder.writer.shapes.values()))


def _recorder(
    model: Any,
    prompts: PromptsLike,
    stats: Sequence[str] | None,
    keep: Sequence[str],
    edits: Sequence[Edit],
    **options: Any,
) -> Recorder:
    """Load the model, read the prompts and resolve the options."""
    loaded = load_model(model)
    batch = read(loaded, prompts)
    resolved = resolve_options(loaded, max(batch.longest), stats, keep, edits, **options)
    return Recorder(loaded, batch, resolved)


def _to_file(
    recorder: Recorder,
    out: Path,
    batch_tokens: int | None,
    overwrite: bool,
    progress: Callable[[int, int], None] | None,
) -> xr.Dataset:
    """Fill a file batch by batch, or what an earlier run has left to fill."""
    if batch_tokens is None and not overwrite:
        # What is there was made in batches of one size, whatever memory is free today.
        batch_tokens = incremental.begun(out).get("batch_tokens")
    planned = estimate_memory(recorder, batch_tokens, streamed=True)
    planned.check()
    recorder.scan_layers()
    recorder.writer.stand_in()
    skeleton = recorder.dataset()
    skeleton.attrs["batch_tokens"] = planned.batch_tokens
    dataset_file.make_folder(out.parent)
    digest = recorder.targets_digest()
    stream = incremental.begin(out, skeleton, recorder.writer.shapes, digest, replace=overwrite)
    recorder.record(planned.batch_tokens, progress, stream)
    stream.finish()
    return dataset_file.load(out, mapped=True)

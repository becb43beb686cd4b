"""The HeadVis tree of a run: what HeadVis and Neuronpedia read.

``config.json``, ``scatter_data.json`` (a row a head) and ``heads/L{l}H{h}.json`` (sequences by
largest weight, their attention sparse: the 8 largest weights of a row). The largest weight of a
sequence leaves out the first query and the first key, as HeadVis does.

Source: HeadVis (Luger, Kamath et al. 2026), data_pipeline.py; Neuronpedia's headvis pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope import probes
from headscope.app.exports import long_table
from headscope.app.pipeline import open_model
from headscope.app.report.scores import collect
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.storage.dataset_file import make_folder, write_text

if TYPE_CHECKING:
    from headscope.probes.storage.run_folder import Run

# What the metrics of an imported tree are called among the results of a run.
NAME = "headvis"
CONFIG, SCATTER, HEADS, PATTERN = (
    "config.json",
    "scatter_data.json",
    "heads",
    "L{layer}H{head}.json",
)
STATS = (
    "entropy", "offset_mass", "distance", "distance_variance", "target_mass", "topk", "topk_key",
)  # fmt: skip
METRICS = {
    "self_attention_score": "Mean weight of each query on itself.",
    "prev_token_score": "Mean weight on the token before.",
    "pattern_entropy": "Mean Shannon entropy of the rows of the pattern, in nats.",
    "qk_distance": "Mean distance of query and key, weighted by attention, in tokens.",
    "qk_distance_variance": "Variance of that distance, in tokens squared.",
    "induction_score": "Weight on the tokens after earlier copies of the query's token (the latest "
    "8, weights below 0.01 included), mean over the queries that have one.",
}
DESCRIBED = ("title", "units", "evidence", "convention")
INTERVALS, SAMPLES, TOP_SAMPLES = 5, 3, 10
LEAST = 0.005
BINS = 50
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
TOKENS = 50


def write(run: Run, out: Path, source: str | None = None) -> Path:
    """Capture the prompts of a run once more and write their HeadVis tree into a new folder.

    Beside HeadVis' own metrics stand the scores of heads of the run's results, as
    ``analysis.variable``.

    Parameters
    ----------
    run
        A run of a decoder's own attention.
    out
        Folder of the tree; it must not hold another.
    source
        Where the model is now, if it was moved.
    """
    if run.manifest.get("attention", "self") != "self":
        raise NotApplicable("run: HeadVis has one sequence a pattern; capture a decoder's own")
    if "token" not in run.capture.coords:
        raise NotApplicable("run: HeadVis shows tokens, and an image has none; capture texts")
    if out.exists() and any(out.iterdir()):
        raise InvalidInput(f"out: {out} is not empty; choose a new folder")
    model = open_model(run, source)
    capture = probes.capture(model, run.prompts(), stats=STATS, targets="induction")
    results = {name: result for name, result in run.results().items() if name != NAME}
    scores = collect(results)
    metrics = {
        **metric_grids(capture),
        **{key: score.array.values for key, score in scores.items()},
    }
    make_folder(out / HEADS)
    make_folder(out / "attributions")
    heads = [(int(layer), int(head)) for layer in capture["layer"] for head in capture["head"]]
    for layer, head in heads:
        name = PATTERN.format(layer=layer, head=head)
        write_text(out / HEADS / name, json.dumps(head_data(capture, layer, head)) + "\n")
    rows = [
        {"layer": layer, "head": head, **{name: _round(grid[at]) for name, grid in metrics.items()}}
        for (layer, head), at in zip(heads, np.ndindex(*_shape(capture)), strict=True)
    ]
    write_text(out / SCATTER, json.dumps(rows) + "\n")
    for stub in ("server_config.json", "attributions/manifest.json"):
        write_text(out / stub, "{}\n")
    # Last, so that half a tree is none.
    write_text(out / CONFIG, json.dumps(_config(run, capture, heads, results), indent=2) + "\n")
    return out


def metric_grids(capture: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Return HeadVis' metrics (layer, head): means over all queries of all prompts."""

    def pooled(array: xr.DataArray) -> NDArray[Any]:
        mean = array.astype(float).mean(("prompt", "query"))
        return np.asarray(mean.transpose("layer", "head").values)

    offsets = capture["offset_mass"].astype(float)
    # The first query has no token before it.
    previous = offsets.sel(offset=1).isel(query=slice(1, None))
    distance = capture["distance"].astype(float)
    grids = (
        pooled(offsets.sel(offset=0)),
        pooled(previous),
        pooled(capture["entropy"]),
        pooled(distance),
        pooled(capture["distance_variance"] + distance**2) - pooled(distance) ** 2,
        pooled(capture["target_mass"].sel(target="induction")),
    )
    return dict(zip(METRICS, grids, strict=True))


def head_data(capture: xr.Dataset, layer: int, head: int) -> dict[str, Any]:
    """Return what HeadVis shows of one head: its sequences, histograms and top tokens."""
    of_head = capture.sel(layer=layer, head=head).transpose("prompt", "query", "rank", ...)
    weights, keys = (
        np.nan_to_num(of_head[name].values.astype(float)) for name in ("topk", "topk_key")
    )
    largest = np.where(keys[:, 1:] >= 1, weights[:, 1:], 0.0).max((1, 2), initial=0.0)
    sequences = []
    for prompt, interval in _sampled(largest):
        count = int(capture["length"][prompt])
        query, rank = np.nonzero(weights[prompt, :count] >= LEAST)
        key = keys[prompt, query, rank].astype(int)
        order = np.lexsort((key, query))
        sequences.append({
            "sequence_id": prompt,
            "interval": interval,
            "tokens": capture["token"].values[prompt, :count].tolist(),
            "attention_indices": (query * count + key)[order].tolist(),
            "attention_values": [_round(weight) for weight in weights[prompt, query, rank][order]],
            "seq_len": count,
            "max_activation": _round(largest[prompt]),
        })  # fmt: skip
    counts, edges = np.histogram(largest, BINS, (0, 1))
    return {
        "sequences": sequences,
        "qk_distance_histogram": _distances(sequences),
        "top_query_tokens": _top_tokens(sequences, "query"),
        "top_key_tokens": _top_tokens(sequences, "key"),
        "histogram": {"bin_edges": edges.round(4).tolist(), "bin_values": counts.tolist()},
        "statistics": {
            "n_samples": len(sequences),
            "mean_max_activation": _round(largest.mean()),
        },
    }


def _sampled(largest: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Choose prompts of every fifth of the largest weights, with the number of the fifth, 5 first.

    The ten largest of the last one, three evenly spread of each other.
    """
    parts = np.array_split(np.argsort(-largest, kind="stable"), INTERVALS)
    for at, part in enumerate(parts):
        most = TOP_SAMPLES if at == 0 else SAMPLES
        step = 1 if at == 0 else max(1, len(part) // most)
        for prompt in part[::step][:most]:
            yield int(prompt), INTERVALS - at


def _entries(sequences: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int, int, float]]:
    for sequence in sequences:
        for index, value in zip(
            sequence["attention_indices"], sequence["attention_values"], strict=True
        ):
            yield sequence, *divmod(index, sequence["seq_len"]), value


def _distances(sequences: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [(abs(query - key), value) for _, query, key, value in _entries(sequences)]
    distance, value = np.array(pairs, dtype=float).reshape(-1, 2).T
    mass, edges = np.histogram(distance, DISTANCES, weights=value)
    return {"bin_edges": edges.tolist(), "bin_values": mass.round(4).tolist()}


def _top_tokens(sequences: list[dict[str, Any]], side: str) -> list[dict[str, Any]]:
    mass: dict[str, float] = {}
    for sequence, query, key, value in _entries(sequences):
        token = sequence["tokens"][query if side == "query" else key]
        mass[token] = mass.get(token, 0.0) + value
    ranked = sorted(mass.items(), key=lambda item: (-item[1], item[0]))[:TOKENS]
    return [{"token": token, "weight": _round(weight)} for token, weight in ranked]


def _config(
    run: Run, capture: xr.Dataset, grid: list[tuple[int, int]], results: Mapping[str, xr.Dataset]
) -> dict[str, Any]:
    layers, heads = _shape(capture)
    about = {
        key: {"title": score.title, **long_table.meaning(results[analysis], variable)}
        for key, score in collect(results).items()
        for analysis, _, variable in [key.partition(".")]
    }
    described = {
        key: ". ".join(str(meaning[part]) for part in DESCRIBED if meaning[part])
        for key, meaning in about.items()
    }
    attrs = capture.attrs
    return {
        "model_name": attrs["model"],
        "dataset_name": run.manifest["task"] or run.manifest["prompts"] or "own prompts",
        "heads": grid,
        "n_layers": layers,
        "n_heads": heads,
        "n_intervals": INTERVALS,
        "metrics": [*METRICS, *about],
        "metric_descriptions": {**METRICS, **described},
        # Read by import-headvis alone.
        "metric_units": {key: meaning["units"] for key, meaning in about.items()},
        "metric_evidence": {key: meaning["evidence"] for key, meaning in about.items()},
        "head_data_pattern": PATTERN,
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [
            {"key": "qk_distance_histogram", "label": "Q-K distance"},
            {"key": "histogram", "label": "Activation distribution"},
        ],
        "custom_tables": [
            {"key": "top_query_tokens", "label": "Top query tokens"},
            {"key": "top_key_tokens", "label": "Top key tokens"},
        ],
        "statistics_display": {
            "n_samples": {"label": "Samples kept", "format": "default"},
            "mean_max_activation": {"label": "Mean max activation", "format": "default"},
        },
        "pipeline_config": {
            **{name: attrs.get(name, "") for name in ("revision", "dtype", "prompts_sha256")},
            "model_name": attrs["model"],
            "dataset_name": run.manifest["task"] or run.manifest["prompts"] or "own prompts",
            "n_sequences": int(capture.sizes["prompt"]),
            "seq_len": int(capture["length"].max()),
            "attn_implementation": f"headscope {attrs['headscope']}",
        },
    }


def _shape(capture: xr.Dataset) -> tuple[int, int]:
    return capture.sizes["layer"], capture.sizes["head"]


def _round(value: Any) -> float | None:
    """Round as HeadVis does; what is missing is null."""
    return round(float(value), 4) if np.isfinite(value) else None

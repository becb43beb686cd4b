"""Read a HeadVis tree, of ours or of another program, and put its metrics beside a run's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.app.exports.headvis import CONFIG, HEADS, NAME, PATTERN, SCATTER
from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.probes.storage.run_folder import Run

UNITS = {
    **dict.fromkeys(("self_attention_score", "prev_token_score", "previous_token_score"), "share"),
    "induction_score": "share",
    "pattern_entropy": "nats",
    "qk_distance": "tokens",
    "qk_distance_variance": "tokens²",
}


def read(folder: Path) -> xr.Dataset:
    """Read the metrics of a HeadVis tree as a result: a variable (layer, head) each.

    What the tree does not say of a head is missing. Raises `InvalidInput` for a folder that is no
    HeadVis tree, heads that stand twice, and values that are no numbers.
    """
    config, rows = _json(folder / CONFIG, dict), _json(folder / SCATTER, list)
    heads: dict[tuple[int, int], dict[str, Any]] = {}
    for at, row in enumerate(rows):
        layer, head = (row.get("layer"), row.get("head")) if isinstance(row, dict) else (None,) * 2
        if type(layer) is not int or type(head) is not int or min(layer, head) < 0:
            raise _broken(folder / SCATTER, f"row {at} names no layer and head")
        if (layer, head) in heads:
            raise _broken(folder / SCATTER, f"L{layer}H{head} stands twice")
        heads[layer, head] = row
    if not heads:
        raise _broken(folder / SCATTER, "it lists no head")
    present = dict.fromkeys(name for row in rows for name in row if name not in ("layer", "head"))
    metrics = [name for name in config.get("metrics") or present if name in present]
    if not metrics:
        raise _broken(folder / SCATTER, "it holds no metric")
    layers, columns = (sorted({head_index[axis] for head_index in heads}) for axis in (0, 1))
    described, units, evidence = (
        config.get(f"metric_{field}") or {} for field in ("descriptions", "units", "evidence")
    )
    pipeline = config.get("pipeline_config") or {}
    result = xr.Dataset(coords={"layer": layers, "head": columns})
    for name in metrics:
        grid = np.full((len(layers), len(columns)), np.nan)
        for head_index, row in heads.items():
            grid[layers.index(head_index[0]), columns.index(head_index[1])] = _number(
                folder, head_index, row, name
            )
        result[name] = (("layer", "head"), grid, {
            "long_name": name.replace("_", " ").capitalize(),
            "units": str(units.get(name, UNITS.get(name, ""))),
            "scale": "diverging" if np.nanmin(grid, initial=0.0) < 0 else "sequential",
            "evidence": str(evidence.get(name, "correlational")),
            "convention": str(described.get(name, "as the HeadVis tree has it")),
        })  # fmt: skip
    model, data = (str(config.get(key, "")) for key in ("model_name", "dataset_name"))
    result.attrs = {
        "analysis": NAME,
        "title": f"HeadVis: metrics of {model or 'a model'} on {data or 'its texts'}.",
        "note": "Read from a HeadVis tree, not measured in this run.",
        "model": model,
        "revision": str(pipeline.get("revision") or ""),
        "task": data,
        **(
            {"n_prompts": pipeline["n_sequences"]}
            if type(pipeline.get("n_sequences")) is int
            else {}
        ),
    }
    return result


def add(run: Run, folder: Path, *, same_model: bool = False) -> xr.Dataset:
    """Add the metrics of a HeadVis tree to a run as the result ``headvis``.

    Metrics that were exported from results of the run itself are left out. A tree of another model,
    or of heads that the run does not have, is refused; ``same_model`` says that a tree of another
    name is of the same model.
    """
    result, capture = read(folder), run.capture
    name, model = result.attrs["model"], str(run.manifest["model"])
    if not same_model and name.rpartition("/")[2].lower() != model.rpartition("/")[2].lower():
        raise InvalidInput(
            f"tree: {folder} is of {name or 'a model without a name'}, the run of {model}; give "
            "--same-model if they are one"
        )
    for dim in ("layer", "head"):
        strange = sorted(set(result[dim].values.tolist()) - set(capture[dim].values.tolist()))
        if strange:
            raise InvalidInput(
                f"tree: {folder} has {dim} {strange[0]}, which {run.path} lacks (it has "
                f"{capture.sizes[dim]}); import it into a run of its model"
            )
    grid = {dim: capture[dim].values for dim in ("layer", "head")}
    exported = {f"{analysis}.{key}" for analysis, of in run.results().items() for key in of}
    result = result.drop_vars(exported & set(map(str, result))).reindex(grid)
    run.save_result(NAME, result)
    return result


def patterns(folder: Path, layer: int, head: int) -> list[xr.DataArray]:
    """Read the sequences of one head, a pattern (query, key) each, the strongest first.

    Weights that the tree leaves out are missing, not 0. Attributes: ``max_activation``,
    ``interval``, ``sequence_id``.
    """
    config = _json(folder / CONFIG, dict)
    name = str(config.get("head_data_pattern") or PATTERN).format(layer=layer, head=head)
    file = folder / HEADS / name
    arrays = []
    for sequence in _json(file, dict).get("sequences") or []:
        try:
            tokens, size = list(map(str, sequence["tokens"])), int(sequence["seq_len"])
            indices = np.asarray(sequence["attention_indices"], dtype=int)
            values = np.asarray(sequence["attention_values"], dtype=float)
            grid = np.full(size * size, np.nan)
            grid[indices] = values
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _broken(file, f"a sequence cannot be read ({error})") from error
        if len(tokens) != size or (indices < 0).any():
            raise _broken(
                file, f"a sequence has {len(tokens)} tokens of {size}, or a place below 0"
            )
        about = {key: sequence.get(key) for key in ("sequence_id", "interval", "max_activation")}
        pattern = xr.DataArray(grid.reshape(size, size), dims=("query", "key"), name="pattern")
        pattern = pattern.assign_coords(token=("query", tokens), key_token=("key", tokens))
        pattern.attrs = {"long_name": f"Attention of L{layer}H{head}", "units": "share", "scale":
                         "sequential", "low": 0.0, "high": 1.0, **about}  # fmt: skip
        arrays.append(pattern)
    return sorted(arrays, key=lambda pattern: -(pattern.attrs["max_activation"] or 0.0))


def _number(folder: Path, head_index: tuple[int, int], row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        head = f"L{head_index[0]}H{head_index[1]}"
        raise _broken(folder / SCATTER, f"{name} of {head} is {value!r}, no number")
    return float(value)


def _json(file: Path, kind: type) -> Any:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(
            f"tree: {file} cannot be read; give the folder that holds {CONFIG} and {SCATTER}"
        ) from error
    except ValueError as error:
        raise _broken(file, f"it is no JSON ({error})") from error
    if not isinstance(value, kind):
        raise _broken(file, f"it holds no {'list' if kind is list else 'object'}")
    return value


def _broken(file: Path, problem: str) -> InvalidInput:
    return InvalidInput(f"tree: {file}: {problem}; export the tree again")

"""A HeadVis tree says of every head what its attention maps say, and comes back as it went."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from eager_oracles import eager_outputs
from refusals import check_message, check_refusal

from headscope.app.exports import headvis, headvis_import
from headscope.probes.storage import run_folder
from headscope.probes.storage.run_folder import Run


@pytest.fixture(scope="module")
def run(demo_run: Path) -> Run:
    return run_folder.open(demo_run)


@pytest.fixture(scope="module")
def tree(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return headvis.write(run, tmp_path_factory.mktemp("trees") / "tree")


@pytest.fixture(scope="module")
def maps(run: Run, bundled: Any) -> list[np.ndarray]:
    """Attention maps (layer, head, query, key) of the prompts, by transformers' eager attention."""
    return [eager_outputs(bundled, [ids])[0][0] for ids in run.prompts()]


def head(tree: Path, layer: int, place: int) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((tree / "heads" / f"L{layer}H{place}.json").read_text())
    return loaded


def test_metrics_are_those_of_eager_attention_maps(tree, maps, run):
    rows = json.loads((tree / "scatter_data.json").read_text())
    config = json.loads((tree / "config.json").read_text())
    assert len(rows) == config["n_layers"] * config["n_heads"] == 32
    assert set(config["metrics"]) <= rows[0].keys()
    for row in (rows[0], rows[13], rows[31]):
        own = [attention_map[row["layer"], row["head"]] for attention_map in maps]
        lags = [np.abs(np.subtract.outer(np.arange(len(one)), np.arange(len(one)))) for one in own]
        mean = np.concatenate([(one * lag).sum(1) for one, lag in zip(own, lags, strict=True)])
        square = np.concatenate([(one * lag**2).sum(1) for one, lag in zip(own, lags, strict=True)])
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = np.concatenate([-np.nansum(one * np.log(one), axis=1) for one in own])
        expected = {
            "self_attention_score": np.concatenate([np.diag(one) for one in own]).mean(),
            "prev_token_score": np.concatenate([np.diag(one, -1) for one in own]).mean(),
            "pattern_entropy": entropy.mean(),
            "qk_distance": mean.mean(),
            "qk_distance_variance": square.mean() - mean.mean() ** 2,
            "induction_score": _induction(own, run.prompts()),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=2e-4, rel=1e-4), name
    ablation = run.results()["importance"]["mean_ablation"]
    assert rows[9]["importance.mean_ablation"] == pytest.approx(float(ablation[1, 1]), abs=1e-4)
    assert "causal" in config["metric_descriptions"]["importance.mean_ablation"]


def _induction(own: list[np.ndarray], prompts: list[list[int]]) -> float:
    result = []
    for weights, ids in zip(own, prompts, strict=True):
        for query, token in enumerate(ids):
            keys = [at + 1 for at in range(query) if ids[at] == token and at + 1 != query]
            if keys:
                result.append(weights[query, keys[-8:]].sum())
    return float(np.mean(result))


def test_sequences_hold_the_largest_weights_and_are_ordered_by_them(tree, maps):
    data = head(tree, 3, 0)
    assert {sequence["interval"] for sequence in data["sequences"]} <= set(range(1, 6))
    strengths = {}
    for sequence in data["sequences"]:
        whole = maps[sequence["sequence_id"]][3, 0]
        size = sequence["seq_len"]
        assert len(sequence["tokens"]) == size == len(whole)
        stored = np.zeros(size * size)
        stored[sequence["attention_indices"]] = sequence["attention_values"]
        stored = stored.reshape(size, size)
        kept = np.sort(whole, axis=1)[:, ::-1][:, :8]
        expected = np.where(kept >= headvis.LEAST, kept, 0).sum(1)
        np.testing.assert_allclose(stored.sum(1), expected, atol=2e-3)
        np.testing.assert_allclose(stored[stored > 0], whole[stored > 0], atol=1e-4)
        assert sequence["max_activation"] == pytest.approx(whole[1:, 1:].max(), abs=1e-4)
        strengths.setdefault(sequence["interval"], []).append(sequence["max_activation"])
    ordered = sorted(strengths)
    for low, high in pairwise(ordered):
        assert max(strengths[low]) <= min(strengths[high])
    assert sum(data["histogram"]["bin_values"]) == len(maps)


def test_what_was_written_comes_back_as_a_result_and_as_patterns(tree, run, tmp_path):
    result = headvis_import.read(tree)
    rows = json.loads((tree / "scatter_data.json").read_text())
    for row in rows:
        place = {"layer": row["layer"], "head": row["head"]}
        assert float(result["pattern_entropy"].sel(place)) == row["pattern_entropy"]
    assert result["pattern_entropy"].attrs["units"] == "nats"
    ablation = result["importance.mean_ablation"].attrs
    assert (ablation["units"], ablation["evidence"]) == ("logits", "causal")
    assert result.attrs["n_prompts"] == run.manifest["n_prompts"]
    first, *_ = headvis_import.patterns(tree, 3, 0)
    assert first.attrs["max_activation"] == max(
        sequence["max_activation"] for sequence in head(tree, 3, 0)["sequences"]
    )
    assert np.nansum(first.values, axis=1).max() <= 1.001
    assert np.isnan(first.values).any(), "what the tree leaves out is missing, not 0"


def test_an_imported_tree_stands_in_report_and_tables(headscope, tree, demo_run, tmp_path):
    folder = tmp_path / "run"
    copytree(demo_run, folder)
    headscope("import-headvis", tree, "--run", folder).printed()
    headscope("report", folder).printed()
    assert 'id="headvis"' in (folder / "report.html").read_text()
    scores = (folder / "scores.csv").read_text()
    assert "headvis,qk_distance" in scores
    assert "headvis,importance" not in scores, "the run has that one itself"


def change(name: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        changed = edit(content)
        (folder / name).write_text(json.dumps(content if changed is None else changed))

    return apply


BROKEN = {
    "no folder": (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
    "no JSON": (lambda folder: (folder / "scatter_data.json").write_text("[{"), "is no JSON"),
    "no list": (change("scatter_data.json", lambda rows: {"rows": rows}), "holds no list"),
    "no heads": (change("scatter_data.json", lambda rows: []), "lists no head"),
    "no place": (change("scatter_data.json", lambda rows: rows[1].pop("head") and None), "row 1"),
    "a head twice": (
        change("scatter_data.json", lambda rows: rows.append(rows[2])), "L0H2 stands twice",
    ),
    "no number": (
        change("scatter_data.json", lambda rows: rows[0].update(qk_distance="far")), "no number",
    ),
    "another model": (
        change("config.json", lambda config: config.update(model_name="gpt2")), "is of gpt2",
    ),
    "other heads": (
        change("scatter_data.json", lambda rows: rows[0].update(layer=77)), "has layer 77",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_tree_of_the_run_is_refused(case, tree, run, tmp_path):
    folder = tmp_path / "tree"
    copytree(tree, folder)
    damage, message = BROKEN[case]
    damage(folder)
    check_message(message, headvis_import.add, run, folder)
    assert "headvis" not in run.results()


def test_a_folder_in_use_and_an_encoder_are_refused(run, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    check_refusal("out", headvis.write, run, tmp_path)
    crossed = Run(run.path, {**run.manifest, "attention": "cross"})
    check_refusal("run", headvis.write, crossed, tmp_path / "tree")

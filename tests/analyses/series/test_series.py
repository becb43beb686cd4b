"""Timelines: a planted order of emergence is found, and a run that breaks off loses nothing."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from constructed import INDUCTION, PREVIOUS, SINK, SIZE, repeated
from refusals import check_message, check_refusal, refusal

from headscope.analyses._runtime import runner
from headscope.analyses.series import emergence, joined, timeline, timeline_folder
from headscope.analyses.series.state import State, states
from headscope.kernels.errors import HeadscopeError
from headscope.probes import load_model

STEPS = (0, 100, 200, 300, 400, 500)
# From this step on a head of the constructed circuit looks where it should; before, everywhere.
PLANTED = {SINK: 100, PREVIOUS: 200, INDUCTION: 400}


@pytest.fixture(scope="module")
def grown(circuit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The constructed circuit, three of its heads planted one after the other, a folder a step."""
    folder = tmp_path_factory.mktemp("grown")
    for step in STEPS:
        module = copy.deepcopy(circuit.module)
        with torch.no_grad():
            for (layer, head), planted in PLANTED.items():
                if step < planted:
                    queries = slice(head * SIZE, (head + 1) * SIZE)
                    attention = module.transformer.h[layer].attn.c_attn
                    attention.weight[:, queries] = 0
                    attention.bias[queries] = 0
        place = folder / f"checkpoint-{step}"
        module.save_pretrained(place)
        circuit.tokenizer.save_pretrained(place)
    return folder


def run(grown: Path, out: Path | None = None, **options) -> xr.Dataset:
    given = {"draws": 1, "least_score": 0.9}
    return timeline("head_types", grown, task=repeated(), options=given, out=out, **options)


@pytest.fixture(scope="module")
def recorded(grown: Path) -> xr.Dataset:
    return run(grown)


def at(array: xr.DataArray, head: tuple[int, int]) -> xr.DataArray:
    return array.sel(layer=head[0], head=head[1])


@pytest.mark.requirement("E4")
def test_the_planted_order_of_emergence_is_found(recorded):
    assert recorded["induction"].dims == ("checkpoint", "layer", "head")
    assert recorded["step"].values.tolist() == list(STEPS)
    for score, head in (("bos", SINK), ("previous_token", PREVIOUS), ("induction", INDUCTION)):
        when = emergence(recorded, score, least=0.9)
        assert [row["name"] for row in when.attrs["order"]] == [f"L{head[0]}H{head[1]}"]
        ends = (when[f"emergence_step{end}"] for end in ("", "_lower", "_upper"))
        step, low, high = (float(at(end, head)) for end in ends)
        assert (low, high) == (PLANTED[head] - 100, PLANTED[head])
        assert low < step < high
    accuracy = recorded["induction_accuracy"].sel(condition="intact").values
    assert (accuracy[:4] < 0.3).all()
    assert (accuracy[4:] == 1.0).all()
    # The circuit needs both heads, so ablating it changes nothing before both are there.
    ablated = recorded["induction_accuracy"].sel(condition="induction heads ablated").values
    assert (ablated[4:] < 0.3).all()
    np.testing.assert_allclose(ablated[:4], accuracy[:4], atol=0.15)


@pytest.mark.requirement("A3")
def test_the_topology_of_sinks_is_followed_over_training(grown):
    result = timeline("sink_topology", grown, task=repeated(length=16))
    steps = list(STEPS)
    kinds = result["topology_share"].sel(kind=["none", "centralised"]).values.tolist()
    planted = steps.index(PLANTED[SINK])
    assert kinds == [[1.0, 0.0]] * planted + [[0.0, 1.0]] * (len(steps) - planted)
    first = result["at_first"]
    # A head that looks everywhere alike parks H_T / T on the first of T tokens.
    uniform = (1 / np.arange(1, 34)).mean()
    np.testing.assert_allclose(at(first, SINK).values[:planted], uniform, atol=1e-4)
    assert (at(first, SINK).values[planted:] > 0.99).all()
    assert result.attrs["positional_encoding"] == "absolute (one vector a position)"
    own = result.attrs["by_checkpoint"]
    assert [own[f"checkpoint-{step}"]["topology"] for step in (0, 500)] == ["none", "centralised"]


def test_each_checkpoint_has_the_result_of_the_analysis_alone(grown, recorded):
    alone = runner.execute(
        "head_types", load_model(grown / "checkpoint-300"), task=repeated(),
        options={"draws": 1, "least_score": 0.9},
    )  # fmt: skip
    here = recorded.sel(checkpoint="checkpoint-300")
    for name in alone.data_vars:
        np.testing.assert_array_equal(here[name].values, alone[name].values)
        assert recorded[name].attrs["long_name"] == alone[name].attrs["long_name"]
    assert here["revision"].item() == alone.attrs["revision"]
    own = recorded.attrs["by_checkpoint"]["checkpoint-300"]
    assert own["heads_by_type"] == alone.attrs["heads_by_type"]
    for field in ("analysis", "title", "options", "prompts_sha256", "n_prompts", "headscope"):
        assert recorded.attrs[field] == alone.attrs[field]
    assert recorded.attrs["model"] == str(grown)
    json.dumps(recorded.attrs)


def test_the_most_severe_verdict_of_the_checkpoints_counts():
    verdicts = {"step0": "too_few", "step1": "disagreement", "step2": "supported"}
    series = [State(name, name, name, at) for at, name in enumerate(verdicts)]
    bare = xr.Dataset({"y": ("layer", [0.0])}, attrs={"note": "A note."})
    results = {name: bare.assign_attrs(verdict=output) for name, output in verdicts.items()}
    whole = joined.join(series, results, {})
    assert whole.attrs["verdict"] == "disagreement"
    assert "Disagreement at step1. Too few to tell at step0." in whole.attrs["note"]
    del results["step1"].attrs["verdict"]
    assert joined.join(series, results, {}).attrs["verdict"] == "too_few"


def test_a_run_that_is_killed_goes_on_where_it_was(grown, recorded, tmp_path, monkeypatch):
    def stop(step: str, done: int, total: int) -> None:
        if (step, done) == ("checkpoints", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(grown, tmp_path / "kept", progress=stop)
    check_refusal("timeline", timeline_folder.load, tmp_path / "kept")
    loaded = []
    execute = runner.execute

    def count(name, model, *rest, **options):
        loaded.append(model.name)
        return execute(name, model, *rest, **options)

    monkeypatch.setattr(runner, "execute", count)
    seen = []
    whole = run(grown, tmp_path / "kept", progress=lambda *step: seen.append(step))
    assert [Path(name).name for name in loaded] == ["checkpoint-400", "checkpoint-500"]
    assert [done for step, done, total in seen if step == "checkpoints"] == list(range(7))
    xr.testing.assert_identical(whole, recorded)
    xr.testing.assert_identical(timeline_folder.load(tmp_path / "kept"), recorded)
    # Other weights under the same name are run again, and they alone.
    loaded.clear()
    for file in (grown / "checkpoint-100").glob("*.safetensors"):
        file.touch()
    run(grown, tmp_path / "kept")
    assert [Path(name).name for name in loaded] == ["checkpoint-100"]


def test_other_options_do_not_mix_with_what_is_kept(grown, tmp_path):
    sources = [grown / "checkpoint-0", grown / "checkpoint-100"]
    prompts = [[0, 5, 6, 7] * 6]
    timeline("sinks", sources, prompts, out=tmp_path / "kept")
    more = {"options": {"epsilon": 0.5}, "out": tmp_path / "kept"}
    with pytest.raises(HeadscopeError, match=r"holds a timeline with options .* \(--overwrite\)"):
        timeline("sinks", sources, prompts, **more)
    with pytest.raises(HeadscopeError, match="holds a timeline with prompts"):
        timeline("sinks", sources, [[0, 5, 6, 8] * 6], out=tmp_path / "kept")
    again = timeline("sinks", sources, prompts, overwrite=True, **more)
    assert json.loads(again.attrs["options"])["epsilon"] == 0.5
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    check_message("holds other files", timeline, "sinks", sources, prompts, out=tmp_path / "full")


def test_a_broken_checkpoint_is_named_and_the_others_go_on(grown, random_llama, tmp_path):
    broken = tmp_path / "checkpoint-250"
    broken.mkdir()
    for file in (grown / "checkpoint-200").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:2000])
    (broken / "config.json").write_text((grown / "checkpoint-200" / "config.json").read_text())
    other = tmp_path / "checkpoint-260"
    random_llama.module.save_pretrained(other)
    random_llama.tokenizer.save_pretrained(other)
    sources = [grown / "checkpoint-0", broken, other, grown / "checkpoint-300"]
    result = timeline("sinks", sources, [[0, 5, 6, 7, 8] * 4])
    assert list(result.attrs["failed"]) == ["checkpoint-250"]
    assert "does not load" in result.attrs["failed"]["checkpoint-250"]
    assert "WARNING: checkpoint-250 failed" in result.attrs["note"]
    assert result["sink"].isnull().all(("layer", "head")).values.tolist() == [
        False, True, False, False,
    ]  # fmt: skip
    shutil.copytree(broken, tmp_path / "checkpoint-251")
    line = str(refusal(timeline, "sinks", [broken, tmp_path / "checkpoint-251"], [[0, 5, 6]]))
    assert "no checkpoint of 2 has a result" in line


def test_different_prompts_are_distinguished_whatever_their_type():
    pixels = np.zeros((3, 64, 64))
    others = pixels.copy()
    others[2, 60, 60] = 1e-3
    given = [["a"], ["b"], [[1, 2]], [[12]], [pixels], [others], repeated(seed=0), repeated(seed=1)]
    assert len({timeline_folder.digest((one, None)) for one in given}) == len(given)
    assert timeline_folder.digest(([pixels], None)) == timeline_folder.digest(
        ([pixels.copy()], None)
    )


def test_models_of_other_shape_fail_by_name(circuit):
    import constructed

    small = constructed.random_llama(layers=1)
    result = timeline("sinks", [circuit, small], [[0, 5, 6, 7] * 6], steps=(1, 2))
    assert "it has {'layer': 1, 'head': 4}" in next(iter(result.attrs["failed"].values()))


@pytest.mark.parametrize(
    ("sources", "steps", "said"),
    [
        (["a/step1"], None, "checkpoints: 1 given; a timeline needs at least two"),
        (["a/step1", "a/final"], None, "steps: a/final names no training step"),
        (["a/step1", "a/step2"], (1,), "steps: 1 for 2 checkpoints"),
        (["a/step1", "b/step1"], None, "steps: 2 checkpoints are at step 1"),
        (["a/x", "a/x"], (1, 2), "checkpoints: one is given twice"),
        ([3, 4], None, "checkpoints: int is no name, folder or model"),
    ],
)
def test_series_that_make_no_sense_are_refused(sources, steps, said):
    check_message(said, states, sources, steps)


def test_requests_are_refused_before_a_model_is_loaded():
    series = "headscope/induction@*"
    check_refusal("analysis", timeline, "sunk", series)
    check_refusal("epsilom", timeline, "sinks", series, [[0]], options={"epsilom": 1})
    check_refusal("prompts", timeline, "sinks", series)


class TestEmergence:
    """Against curves whose crossing is known."""

    @staticmethod
    def of(values: list[float], half: float = 0.0, **options) -> tuple[float, ...]:
        steps = [10.0 * place for place in range(len(values))]
        curve = xr.DataArray(values, dims="checkpoint", coords={"step": ("checkpoint", steps)})
        given = {"y": curve}
        if half:
            given |= {"y_lower": curve - half, "y_upper": curve + half}
        result = emergence(xr.Dataset(given), "y", **options)
        return tuple(float(result[f"emergence_step{end}"]) for end in ("", "_lower", "_upper"))

    def test_a_line_crosses_half_of_its_end_in_the_middle(self):
        assert self.of([0.0, 0.2, 0.4, 0.6, 0.8]) == (20.0, 10.0, 20.0)
        assert self.of([0.0, 0.3, 0.9, 0.9]) == pytest.approx((12.5, 10, 20))
        assert self.of([0.0, 0.3, 0.9, 0.9], threshold=0.6) == pytest.approx((15, 10, 20))

    def test_uncertain_values_widen_the_interval(self):
        assert self.of([0.0, 0.3, 0.5, 0.7, 0.9], half=0.2) == pytest.approx((17.5, 0, 30))
        assert np.isnan(self.of([0.0, 0.1, 0.9], half=0.6)[2])

    def test_only_a_crossing_that_lasts_counts(self):
        assert self.of([0.0, 0.9, 0.1, 0.9, 0.9])[0] == pytest.approx(24.375)
        assert np.isnan(self.of([0.0, 0.9, 0.1])[0])
        assert self.of([0.8, 0.9, 0.9]) == (0.0, 0.0, 0.0)

    def test_what_falls_crosses_from_above(self):
        assert self.of([6.0, 6.0, 2.0, 2.0], of="change") == pytest.approx((15, 10, 20))
        assert np.isnan(self.of([6.0, 5.9], of="change")[0])

    def test_missing_checkpoints_are_passed_over(self):
        assert self.of([0.0, np.nan, 0.8, 0.8]) == pytest.approx((10, 0, 20))
        assert np.isnan(self.of([np.nan, np.nan, 0.8])[0])

    def test_order_and_ties(self):
        values = np.array([[0, 0, 0, 0], [0, 1, 1, 0.1], [1, 1, 1, 0.1]], dtype=float)
        data = {"y": (("checkpoint", "layer", "head"), values[:, None])}
        result = emergence(xr.Dataset(data, {"step": ("checkpoint", [0, 10, 20])}), "y")
        np.testing.assert_array_equal(result["emergence_order"].values, [[3, 1, 1, np.nan]])
        assert [row["name"] for row in result.attrs["order"]] == ["L0H1", "L0H2", "L0H0"]
        assert result.attrs["note"].startswith("y: L0H1 at step 5, L0H2 at step 5, L0H0 at step 15")

    def test_bad_requests_are_refused(self):
        check_refusal("score", emergence, xr.Dataset({"y": ("checkpoint", [0.0])}), "z")
        check_refusal("of", self.of, [0.0, 1.0], of="middle")

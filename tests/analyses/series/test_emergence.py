"""The shipped series: induction emerges, in the known order, and matters from then on."""

import numpy as np
import pytest
import torch
import xarray as xr

from headscope.analyses._interventions.ablation import evaluate as evaluate_task
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses.series import emergence, order, timeline
from headscope.kernels.errors import NotApplicable
from headscope.probes import checkpoints, load_model
from headscope.probes.attention.forward import logits
from headscope.probes.bundled import folder
from headscope.probes.interventions import Ablate
from headscope.probes.prompts import tasks
from headscope_training.evaluation import head_scores, predict_next, without
from headscope_training.induction import evaluation

SERIES = "headscope/induction"


@pytest.fixture(scope="module")
def types() -> xr.Dataset:
    return timeline("head_types", f"{SERIES}@*", n=16, seed=5, options={"draws": 2})


@pytest.fixture(scope="module")
def losses() -> xr.Dataset:
    """Loss on words said the second time, by transformers alone."""
    steps = [int(name.rpartition("step")[2]) for name in checkpoints(SERIES)]
    _, again = evaluation.held_out()
    result = []
    for step in steps:
        loss = predict_next(evaluation.load(folder(SERIES), f"step{step}"), again[:16])[0]
        result.append(loss[:, evaluation.PERIOD + 1 :].mean(1).double().numpy())
    ends = bootstrap(np.array(result).T)
    names = ("loss", "loss_lower", "loss_upper")
    values = {name: ("checkpoint", end) for name, end in zip(names, ends, strict=True)}
    return xr.Dataset(values, {"step": ("checkpoint", steps)})


def heads(emerged: xr.Dataset) -> list[tuple[int, int]]:
    return [(int(row["name"][1]), int(row["name"][3:])) for row in emerged.attrs["order"]]


@pytest.mark.requirement("E4")
def test_the_previous_token_head_comes_first_then_induction_as_the_loss_drops(types, losses):
    previous = emergence(types, "previous_token", least=0.4)
    induction = emergence(types, "induction", least=0.4)
    assert {layer for layer, _ in heads(previous)} == {0}
    assert {layer for layer, _ in heads(induction)} == {1}
    first = previous.attrs["order"][0]
    later = induction.attrs["order"]
    assert all(first["step"] <= row["step"] for row in later)
    assert all(first["upper"] <= row["upper"] for row in later)
    assert all(row["lower"] < row["step"] < row["upper"] for row in [first, *later])
    drop = emergence(losses, "loss", of="change")
    low, high = (float(drop[f"emergence_step_{end}"]) for end in ("lower", "upper"))
    # The half of the drop falls between the same checkpoints as the half of the heads.
    assert any(row["lower"] <= high and row["upper"] >= low for row in later)
    # A plateau before: no more than a seventh of the drop in the first third of the way there.
    loss = losses["loss"].values
    early = loss[losses["step"].values <= high / 2]
    assert loss[0] - early[-1] < (loss[0] - loss[-1]) / 7


@pytest.mark.requirement("E4")
def test_the_checkpoints_show_that_the_previous_token_head_is_first(types, losses):
    together = types.assign(losses.drop_vars("step"))
    for later in ("induction", "loss"):
        result = order(together, [later, "previous_token"])
        assert result["score"].values.tolist() == ["previous_token", later]
        assert result.attrs["order"][0]["entries"] == ["L0H0"]
        assert result.attrs["verdict"] == "supported"
        assert float(result["lag"][1]) > 0
    # Induction heads and the drop of the loss are one event: within the distance of checkpoints.
    result = order(together, ["induction", "loss"])
    assert result.attrs["verdict"] == "too_few"
    assert result["lag_lower"][1] < 0 < result["lag_upper"][1] <= 50
    # The sink is last, at every level.
    whole = order(types)
    assert whole["score"].values.tolist()[0] == "previous_token"
    assert whole["score"].values.tolist()[-1] == "bos"
    assert (whole.attrs["pairs"][0], whole.attrs["pairs"][-1]) == ("supported", "supported")
    assert float(whole["in_order"][-1]) == 1


@pytest.mark.requirement("E4")
def test_checkpoints_in_another_order_have_no_order_of_emergence(types):
    """The control: the same scores, with the checkpoints of each dealt anew."""
    scores = ["previous_token", "induction"]
    rng, output = np.random.default_rng(0), []
    for _ in range(40):
        dealt = types.copy()
        for name in scores:
            places = np.r_[0, rng.permutation(np.arange(1, types.sizes["checkpoint"]))]
            for end in ("", "_lower", "_upper"):
                dealt[f"{name}{end}"] = types[f"{name}{end}"].isel(checkpoint=places).variable
        try:
            result = order(dealt, scores)
        except NotApplicable:
            continue  # what ends as low as it began has not emerged
        output.append(result["score"].values[0] == scores[0])
    assert 0.2 < np.mean(output) < 0.8


@pytest.mark.requirement("E4")
def test_ablating_the_induction_heads_matters_at_the_end_and_not_at_the_beginning(types):
    top = heads(emergence(types, "induction", least=0.4))
    circuit = [*top, *heads(emergence(types, "previous_token", least=0.4))]
    others = [(layer, head) for layer in range(2) for head in range(4)]
    others = [head for head in others if head not in circuit]
    assert len(others) >= len(top)
    _, again = evaluation.held_out()
    result = {}
    for step in ("step100", checkpoints(SERIES)[-1].rpartition("@")[2]):
        model, stock = load_model(f"{SERIES}@{step}"), evaluation.load(folder(SERIES), step)
        result[step] = {}
        for name, taken in (("intact", ()), ("top", top), ("others", others)):
            result[step][name] = said_again(model, again[:16], taken)
            # The edit inside the pass is the ablation of the weights.
            expected = evaluation.second_time(without(stock, taken), again[:16])
            assert result[step][name] == pytest.approx(tuple(expected.values()), abs=1e-3)
    early, late = result.values()
    # Loss and accuracy where words come again; a guess costs log(482) = 6.2 nats.
    assert late["intact"] == (pytest.approx(0.15, abs=0.15), pytest.approx(0.97, abs=0.03))
    assert late["top"][0] > 6
    assert late["top"][1] < 0.03
    assert late["others"][1] > 0.6
    assert abs(early["top"][0] - early["intact"][0]) < 0.2
    assert abs(early["top"][1] - early["intact"][1]) < 0.02


def said_again(model, rows, taken) -> tuple[float, float]:
    """Loss and accuracy on the second time of words, with heads taken out."""
    edits = (Ablate(heads=tuple(taken)),) if taken else ()
    asked = logits(model, rows[:, :-1], edits)[:, evaluation.PERIOD + 1 :]
    answers = rows[:, evaluation.PERIOD + 2 :]
    loss = torch.nn.functional.cross_entropy(asked.transpose(1, 2), answers)
    return float(loss), float((asked.argmax(-1) == answers).float().mean())


@pytest.mark.requirement("A3")
def test_a_sink_on_the_first_token_forms_after_induction(types):
    _, again = evaluation.held_out()
    result = timeline("sink_topology", f"{SERIES}@*", [row.tolist() for row in again[:8]])
    share = result["topology_share"].sel(kind="none")
    assert (share[result["step"] <= 500] == 1).all()
    assert float(share[-1]) == 0
    assert float(result["sink_share"].sel(place="first token")[-1]) > 0.5
    # As it is drawn, every head looks everywhere alike: the first of T tokens gets H_T / T.
    uniform = (1 / np.arange(1, again.shape[1] + 1)).mean()
    np.testing.assert_allclose(result["at_first"][0], uniform, atol=2e-3)
    sink = emergence(result, "at_first", least=0.3).attrs["order"]
    assert [row["name"] for row in sink] == ["L0H1"]
    induction = emergence(types, "induction", least=0.4).attrs["order"]
    assert sink[0]["lower"] >= max(row["step"] for row in induction)
    assert result.attrs["positional_encoding"] == "rotary (default)"


def test_the_analysis_own_causal_check_turns_from_too_few_to_supported(types):
    verdicts = [own["verdict"] for own in types.attrs["by_checkpoint"].values()]
    assert (verdicts[0], verdicts[-1]) == ("too_few", "supported")
    assert "Too few to tell at step0" in types.attrs["note"]
    accuracy = types["induction_accuracy"].sel(condition="intact")
    assert float(accuracy[0]) < 0.02
    assert float(accuracy[-1]) > 0.9


def test_scores_are_those_of_eager_maps(types):
    model = load_model(f"{SERIES}@step400")
    task = tasks.make("induction", model.tokenizer, n=16, seed=5)
    intact = types["induction_accuracy"].sel(checkpoint="step400", condition="intact")
    accuracy = evaluate_task(model, task, (), "accuracy").mean()
    assert accuracy == pytest.approx(float(intact))
    rows = torch.tensor([model.encode(prompt.clean) for prompt in task.prompts])
    assert rows.shape[1] == 2 * evaluation.PERIOD + 1
    expected = head_scores(evaluation.load(folder(SERIES), "step400"), rows)
    result = types["induction"].sel(checkpoint="step400")
    np.testing.assert_allclose(result, expected["induction"], atol=1e-4)

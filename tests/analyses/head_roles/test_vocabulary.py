"""Vocabulary: a mover and a suppressor set by hand, distinguished by logits and by ablation."""

import numpy as np
import pytest
import torch
from constructed import NAMES, WORDS, silent_gpt2, tokenizer
from refusals import check_refusal
from word_prompts import Asked, word_prompt

from headscope.analyses import head_types, vocabulary
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._measurements import unembedding
from headscope.analyses._runtime import taxonomy
from headscope.analyses._runtime.runner import execute
from headscope.analyses.head_roles import _candidates
from headscope.probes import capture, load_model
from headscope.probes.interventions import Ablate
from headscope.probes.prompts.task import Task

SIZE, MARK = 64, 63
MOVER, SUPPRESSOR, SUBJECT, IDLE = (0, 0), (0, 1), (0, 2), (0, 3)


@pytest.fixture(scope="module")
def task():
    """A name marked by ``note``, a name marked by ``ask``; the marked one is the answer."""
    prompts = []
    for at in range(16):
        answer, wrong = NAMES[at % 10], NAMES[(at + 4) % 10]
        words = ("note", answer, "ask", wrong, ".")
        prompts.append(word_prompt(words, words, [Asked(4, (answer,), (wrong,), (1,))]))
    return Task("pairs", tuple(prompts), "logit_difference", 0, "Two names.")


@pytest.fixture(scope="module")
def model():
    """One layer: heads 0, 1 look from the end at the answer, head 2 at the other name.

    Head 0 copies what it sees, heads 1 and 2 write its negative, head 3 nothing.
    """
    width = 4 * SIZE
    module = silent_gpt2(n_positions=16, n_embd=width, n_layer=1, n_head=4)
    words = torch.arange(len(WORDS))
    with torch.no_grad():
        module.transformer.wte.weight[words, words] = 1.0
        places = torch.arange(16)
        module.transformer.wpe.weight[places, 100 + places] = 1.0
        module.lm_head.weight[words, 180 + words] = 1.0
        attention = module.transformer.h[0].attn
        for head, place, sign in ((0, 2, 1.0), (1, 2, -0.4), (2, 4, -0.8), (3, 2, 0.0)):
            attention.c_attn.bias[head * SIZE + MARK] = 20.0
            attention.c_attn.weight[100 + place, width + head * SIZE + MARK] = 1.0
            attention.c_attn.weight[words, 2 * width + head * SIZE + words] = 1.0
            attention.c_proj.weight[head * SIZE + words, 180 + words] = sign
    return load_model(module, tokenizer=tokenizer())


@pytest.fixture(scope="module")
def result(model, task):
    cap = capture(model, task, stats=("target_mass",), keep=("v",), targets=("evidence",))
    return vocabulary.run(cap, model, task)


@pytest.mark.requirement("A13")
def test_movers_and_suppressors_are_distinguished(result):
    named = result.attrs["heads_by_type"]
    assert named["name-mover-like"] == ["L0H0"]
    assert set(named["copy-suppression"]) == {"L0H1", "L0H2"}
    for name, head in (("name_mover", MOVER), ("copy_suppression", SUPPRESSOR)):
        assert float(result[name][head]) > 0.99
    assert float(result["to_wrong"][SUBJECT]) > 0.99
    assert float(result["copy_suppression"][SUBJECT]) > 0.99
    assert float(result["copying"][MOVER]) == 1.0
    assert float(result["suppression"][SUPPRESSOR]) == 1.0
    types = ["name-mover-like", "copy-suppression", "copy-suppression", ""]
    assert result["head_type"].values.tolist() == [types]


def test_the_causal_column_is_the_ablation_and_agrees(result, model, task):
    intact = evaluate(model, task)
    for head in (MOVER, SUPPRESSOR, SUBJECT, IDLE):
        without = evaluate(model, task, (Ablate(heads=(head,)),))
        assert float(result["lost"][head]) == pytest.approx((intact - without).mean(), abs=1e-5)
    assert float(result["lost"][MOVER]) > 0.05
    assert float(result["lost"][SUPPRESSOR]) < -0.05
    # Suppressing the wrong name helps.
    assert float(result["lost"][SUBJECT]) > 0.05
    assert result["lost"].attrs["evidence"] == "causal"
    assert result.attrs["verdict"] == "supported"
    assert result.attrs["note"].count("Causal check agrees") == 2


@pytest.mark.requirement("A13")
def test_stage_evidence_and_method_filter_heads_and_scores(result, bundled):
    assert vocabulary.types_of(result, head_type="copy-suppression") == [SUPPRESSOR, SUBJECT]
    assert vocabulary.types_of(result, stage="expression preparation", evidence="causal") == []
    assert result["name_mover"].attrs["method"].startswith("modeling-required, training-free")
    assert result["lost"].attrs["method"].startswith("modeling-free")
    check_refusal("colour", vocabulary.types_of, result, colour="red")
    # The scores of another analysis speak the same words.
    types = execute("head_types", bundled, n=2, options={"draws": 1})
    stages = {name: types[name].attrs["stage"] for name in head_types.TARGETS if name in types}
    assert stages == {"induction": "latent reasoning"}
    assert types["previous_token"].attrs["stage"] == "in-context identification"
    assert {term.stage for term in taxonomy.TERMS.values()} <= set(taxonomy.STAGES)


def test_suppressors_of_the_bundled_model_hold_up(bundled):
    result = execute("vocabulary", bundled, n=16, seed=1)
    assert "copy-suppression heads (L3H2, L3H3) change" in result.attrs["note"]
    assert float(result["to_wrong"].sel(layer=3, head=2)) > 0.95
    assert float(result["lost_lower"].sel(layer=3, head=2)) > 1


def test_reading_out_is_the_norm_and_the_unembedding(bundled):
    vectors = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(0))
    weight = bundled.module.model.norm.weight.double()
    size = vectors.double().square().mean(-1, keepdim=True) + bundled.module.config.rms_norm_eps
    expected = (vectors.double() / size.sqrt() * weight) @ bundled.module.lm_head.weight.double().T
    result = unembedding.read_out(bundled, vectors)
    np.testing.assert_allclose(result, expected.detach(), atol=1e-3)


def test_bad_input_is_refused(model, task):
    cap = capture(model, task, stats=("target_mass",), keep=("v",), targets=("evidence",))
    check_refusal("capture", _candidates.measure, cap.isel(prompt=[0]), model, task, 1)

import numpy as np
import pytest
import torch
import transformers
from constructed import INDUCTION, PREVIOUS, WORDS, repeated

from headscope.analyses import importance, patching
from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.batched_edits import RowReplace
from headscope.analyses._interventions.metrics import score
from headscope.analyses._runtime import runner
from headscope.probes import capture, load_model
from headscope.probes.attention.forward import logits


def run(model, task, **options):
    return patching.run(capture(model, task, stats=(), keep=("z",)), model, task, **options)


@pytest.fixture(scope="module")
def linear(random_llama):
    """One layer without MLP and last norm: logits are linear in what the heads put out."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=80, n_embd=32, n_layer=1, n_head=4, n_inner=4,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    module = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        module.transformer.h[0].mlp.c_proj.weight.zero_()
    module.transformer.ln_f = torch.nn.Identity()
    return load_model(module, tokenizer=random_llama.tokenizer)


@pytest.mark.requirement("D1")
def test_noising_finds_what_is_needed_and_denoising_what_is_enough(circuit):
    result = run(circuit, repeated(n=3, length=6))
    needed = np.zeros((2, 4))
    needed[PREVIOUS] = needed[INDUCTION] = 1.0
    np.testing.assert_allclose(result["noising"].values, needed, atol=1e-6)
    # The clean previous-token head alone points at words that are other ones: not enough.
    enough = np.zeros((2, 4))
    enough[INDUCTION] = 1.0
    np.testing.assert_allclose(result["denoising"].values, enough, atol=1e-6)
    assert float(result["clean"]) == 1.0
    assert float(result["corrupted"]) == 0.0
    silent = np.ones((2, 4), dtype=bool)
    silent[PREVIOUS] = silent[INDUCTION] = False
    for name in ("noising_attribution", "denoising_attribution"):
        assert np.abs(result[name].values[silent]).max() == 0
        assert result[name].values[INDUCTION] > 0


def test_attribution_patching_is_exact_on_a_linear_model(linear):
    result = run(linear, repeated(n=3, length=5), metric="logit_difference")
    for name in ("noising", "denoising"):
        patched = result[name].values
        assert np.abs(patched).max() > 0.01
        np.testing.assert_allclose(result[f"{name}_attribution"].values, patched, atol=1e-4)
        assert float(result[f"{name}_agreement"]) == pytest.approx(1.0)


def test_gates_of_a_linear_model_are_its_ablations(linear):
    task = repeated(n=3, length=5)
    cap = capture(linear, task, stats=(), keep=("z",))
    result = importance.run(cap, linear, task, metric="logit_difference")
    for name in ("first_order", "integrated_gradient"):
        np.testing.assert_allclose(result[name].values, result["zero_ablation"].values, atol=1e-4)


def test_the_estimate_is_the_derivative_of_a_partial_patch(random_llama):
    # A small step towards the corrupted output, by an edit that was not written for gradients.
    task = repeated(n=1, length=5)
    clean = ablation.kept_z(capture(random_llama, task, stats=(), keep=("z",)))
    other = ablation.kept_z(ablation.capture_corrupted(random_llama, task))
    encoded = ablation.encode_task(random_llama, task)
    ids, asked = encoded.ids, encoded.questions
    slope = head_gradients.patch_gradient(random_llama, task, "logit_difference", other)[0]
    chosen = torch.zeros(1, 2, 4, dtype=torch.bool)
    chosen[0, 0, 2] = True
    ends = []
    for step in (0.05, -0.05):
        edit = RowReplace(chosen, clean + step * (other - clean))
        output = logits(random_llama, torch.tensor([ids[0]]), (edit,)).detach()
        ends.append(float(score(output, asked, "logit_difference")))
    assert slope[0, 2] == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.02)


def test_attribution_and_patching_agree_on_the_bundled_model(bundled):
    result = runner.execute("patching", bundled, n=8)
    for name in ("noising", "denoising"):
        assert float(result[f"{name}_agreement"]) > 0.8
        assert float(result[f"{name}_agreement_lower"]) > 0.6
    assert "Attribution ranks heads like noising does" in result.attrs["note"]
    assert "least so L" in result.attrs["note"]
    assert result.attrs["verdict"] == "supported"

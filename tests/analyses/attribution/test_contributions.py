import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated

from headscope.analyses import contributions
from headscope.analyses._interventions.next_token_loss import losses
from headscope.analyses._measurements import head_outputs
from headscope.analyses.attribution import _head_writing
from headscope.probes import capture
from headscope.probes.interventions import Ablate


@pytest.mark.requirement("D4")
@torch.no_grad()
def test_contributions_are_what_the_layers_output_loses_and_sum_to_it(random_llama):
    ids = [0, 5, 6, 7, 8, 5, 6]
    cap = capture(random_llama, [ids], stats=(), keep=("z",))
    result = contributions.run(cap, random_llama, causal_prompts=0)
    projection = random_llama.module.model.layers[1].self_attn.o_proj
    seen = []
    handle = projection.register_forward_hook(lambda part, args, out: seen.append((args[0], out)))
    random_llama.module(input_ids=torch.tensor([ids]))
    handle.remove()
    given, whole = seen[0]
    size = random_llama.head_size
    pieces = []
    for head in range(4):
        without = given.clone()
        without[..., head * size : (head + 1) * size] = 0
        pieces.append((whole - projection(without))[0].double())
    norms = torch.stack(pieces).norm(dim=-1).numpy()
    np.testing.assert_allclose(result["token_norm"].values[1], norms, atol=1e-6)
    np.testing.assert_allclose(sum(pieces), whole[0].double(), atol=1e-6)
    share = (norms / norms.sum(0)).mean(1)
    np.testing.assert_allclose(result["norm_share"].values[1], share, atol=1e-5)
    np.testing.assert_allclose(result["output_share"].sum("head"), 1, atol=1e-6)


def test_shares_sum_to_one_token_by_token(random_llama):
    weights = head_outputs.output_weights(random_llama)
    z = torch.randn(4, 9, random_llama.head_size)
    norms, shares = _head_writing.write_norms(z, weights[0])
    assert norms.shape == shares.shape == (4, 9)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-10)
    z[:, 3] = 0
    assert (_head_writing.write_norms(z, weights[0])[1][:, 3] == 0).all()


@pytest.mark.requirement("D4")
def test_the_heads_that_write_hold_all_of_their_layer(circuit):
    cap = capture(circuit, repeated(n=3, length=6), stats=(), keep=("z",))
    result = contributions.run(cap, circuit, causal_prompts=2)
    expected = np.zeros((2, 4))
    expected[PREVIOUS] = expected[INDUCTION] = 1.0
    for name in ("norm_share", "output_share"):
        np.testing.assert_allclose(result[name].values, expected, atol=1e-6)
    # One head holds everything: nothing is shared.
    np.testing.assert_allclose(result["head_balance"].values, 0, atol=1e-6)
    assert "Uneven layers: layer 0 (0), layer 1 (0)" in result.attrs["note"]
    silent = expected == 0
    np.testing.assert_allclose(result["loss_ablation"].values[silent], 0, atol=1e-6)
    assert (np.abs(result["loss_ablation"].values[~silent]) > 0.1).all()
    agrees = float(result["share_vs_ablation_lower"]) > 0
    assert result.attrs["verdict"] == ("supported" if agrees else "disagreement")


def test_the_loss_is_that_of_the_first_prompts_that_have_a_next_token(random_llama):
    ids = [0, 5, 6, 7, 8, 5]
    result, alone = (
        contributions.run(capture(random_llama, given, keep=("z",)), random_llama, causal_prompts=1)
        for given in ([[5], [6], ids], [ids])
    )
    np.testing.assert_array_equal(result["loss_ablation"], alone["loss_ablation"])


def test_the_loss_is_that_of_one_edit_at_a_time(random_llama):
    ids = [[0, 5, 6, 7, 8, 5], [0, 9, 10, 11]]
    lost = _head_writing.loss_without(random_llama, ids, torch.ones(2, 4, dtype=torch.bool))
    for row, token in enumerate(ids):
        gap = losses(random_llama, token, (Ablate(heads=((1, 2),)),)) - losses(random_llama, token)
        assert lost[row, 1, 2] == pytest.approx(gap.mean(), abs=1e-5)

import copy

import numpy as np
import pytest
import torch
from refusals import check_refusal

from headscope.analyses import block_influence
from headscope.analyses._interventions.next_token_loss import losses
from headscope.probes import capture, load_model
from headscope.probes.interventions import Ablate

PROMPTS = [[0, 5, 6, 7, 8, 5, 6, 7], [0, 9, 10, 11, 9, 10]]


def of(model):
    return block_influence.run(capture(model, PROMPTS, stats=("lse",)), model)


@pytest.mark.requirement("D4")
@torch.no_grad()
def test_a_block_that_writes_nothing_has_no_influence(random_llama):
    module = copy.deepcopy(random_llama.module)
    idle = module.model.layers[1]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    module.model.layers[0].mlp.down_proj.weight.mul_(20)
    result = of(load_model(module, tokenizer=random_llama.tokenizer))
    assert result["block_influence"].values[1] == pytest.approx(0, abs=1e-7)
    assert result["block_influence"].values[0] > 1e-3
    for name in ("final_change", "skip_loss"):
        assert result[name].values[1] == pytest.approx(0, abs=1e-6), name
        assert abs(result[name].values[0]) > 1e-5, name


@pytest.mark.requirement("D4")
@torch.no_grad()
def test_influence_and_losses_are_those_of_the_model_with_the_block_cut_out(random_llama):
    result = of(random_llama)
    module = random_llama.module
    turned, lost, without = [], [], []
    for ids in PROMPTS:
        given = {"input_ids": torch.tensor([ids]), "use_cache": False}
        hidden = module(**given, output_hidden_states=True).hidden_states
        # The last of these is behind the norm, so the first block alone is read here.
        cosine = torch.nn.functional.cosine_similarity(hidden[0][0], hidden[1][0], dim=-1)
        turned.append(float((1 - cosine).mean()))
        cut = copy.deepcopy(module)
        cut.model.layers = torch.nn.ModuleList([cut.model.layers[1]])
        cut.config.num_hidden_layers = 1
        rows = cut(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(rows, torch.tensor(ids[1:]))
        intact = losses(random_llama, ids).mean()
        lost.append(float(loss) - intact)
        edit = Ablate(heads=tuple((1, head) for head in range(4)))
        without.append(losses(random_llama, ids, (edit,)).mean() - intact)
    assert result["block_influence"].values[0] == pytest.approx(np.mean(turned), abs=1e-6)
    assert result["skip_loss"].values[0] == pytest.approx(np.mean(lost), abs=1e-5)
    assert result["attention_loss"].values[1] == pytest.approx(np.mean(without), abs=1e-6)


def test_the_note_states_which_block_the_loss_would_skip(bundled):
    texts = [list(range(5, 45)), list(range(50, 90))]
    result = block_influence.run(capture(bundled, texts, stats=("lse",)), bundled)
    cheapest = int(result["skip_loss"].values.argmin())
    assert f"the cheapest block to skip is {cheapest} " in result.attrs["note"]
    agrees = float(result["influence_vs_loss"]) > 0
    assert result.attrs["verdict"] == ("supported" if agrees else "disagreement")
    assert f"ρ {float(result['influence_vs_loss']):.2f}" in result.attrs["note"]


def test_single_tokens_are_refused(random_llama):
    cap = capture(random_llama, [[5]], stats=("lse",))
    check_refusal("prompts", block_influence.run, cap, random_llama)

"""The words that heads and the stream promote, against all logits of the model."""

import copy

import numpy as np
import pytest
import torch
from constructed import INDUCTION, repeated
from logit_parts import family

from headscope.analyses import logit_attribution
from headscope.analyses._interventions import ablation
from headscope.analyses._measurements import direct_logit_attribution, token_pairs
from headscope.analyses._measurements.readout import Readout
from headscope.analyses.attribution import _promoted_words
from headscope.probes import capture


@pytest.fixture(scope="module")
def task():
    return repeated(n=2, length=5)


@pytest.mark.requirement("C6")
def test_words_that_heads_promote(circuit):
    task = repeated(n=1, length=6)
    encoded = ablation.encode_task(circuit, task)
    result = logit_attribution.run(
        capture(circuit, task, stats=(), keep=("z",)), circuit, task, top_words=1
    )
    answer = repr(circuit.to_str_tokens(encoded.questions[0][-1].answer_ids)[0])
    for name in ("promotes", "promotes_before_norm"):
        words = result[name].values
        assert words[INDUCTION] == answer
        # Heads that write nothing promote no word; L0H0 writes where no word is read.
        assert set(words[0, 1:].tolist()) | set(words[1, 1:].tolist()) == {""}
    for name in ("stream_promotes", "stream_promotes_before_norm"):
        assert result[name].values[-1] == answer
    assert f"L1H0 {answer}" in result.attrs["note"]
    grown = result["accumulated_logit"].values
    assert grown[-1] == pytest.approx(float(result["logit_difference"]), abs=1e-4)
    assert np.abs(grown[:2]).max() < 1e-5


@pytest.mark.requirement("C6")
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_promoted_words_are_those_of_all_logits(name, random_llama, task, monkeypatch):
    monkeypatch.setattr(token_pairs, "CELLS", 100)  # three vectors at once
    model = family(name, random_llama.tokenizer)
    encoded = ablation.encode_task(model, task)
    reads = Readout(model)
    opened = direct_logit_attribution.of_prompt(reads, encoded, 0)
    result = _promoted_words.coordinates(reads, opened.cache, 3)
    table = model.module.get_output_embeddings().weight.detach().double()
    norm = copy.deepcopy(reads.last).double()
    with torch.no_grad():
        z = [opened.cache.z[layer][0] for layer in range(2)]
        heads = torch.stack([reads.writes_of(layer, opened.cache)[0] for layer in range(2)])
        if name == "llama":
            weights = [layer.self_attn.o_proj.weight.double() for layer in model.base.layers]
            expected = torch.stack(
                [
                    torch.einsum("hs,rhs->hr", a, w.view(32, 4, 8))
                    for a, w in zip(z, weights, strict=True)
                ]
            )
            torch.testing.assert_close(heads, expected)
        # The norm of a vector alone has another scale, which moves no word, and its bias.
        after = norm(heads) - norm(torch.zeros_like(heads))
        streams = torch.cat(opened.cache.streams)
        for key, logits in (
            ("promotes", after @ table.T), ("promotes_before_norm", heads @ table.T),
            ("stream_promotes", norm(streams) @ table.T),
            ("stream_promotes_before_norm", streams @ table.T),
        ):  # fmt: skip
            for words, row in zip(np.ravel(result[key][1]), logits.flatten(0, -2), strict=True):
                best = [model.to_str_tokens([index])[0] for index in row.topk(3).indices.tolist()]
                assert words == " ".join(map(repr, best))

import numpy as np
import pytest
import torch
import transformers
from architectures import eager_maps
from constructed import PREVIOUS, encoder, encoder_tokenizer, repeated
from refusals import check_refusal

from headscope.analyses import offsets, similarity
from headscope.analyses._runtime.runner import execute
from headscope.analyses.token_groups._delimiters import is_punctuation, positions
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A11")

TEXTS = [
    "note apple north . ask lemon",
    "Mary John Tom . Anna , apple rice",
    "summer winter . rain",
]


@pytest.fixture(scope="module")
def bert():
    return load_model(encoder(), tokenizer=encoder_tokenizer())


@pytest.fixture(scope="module")
def random_bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(encoder_tokenizer()), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=16, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.6,
    )  # fmt: skip
    module = transformers.BertForMaskedLM(config).eval()
    return load_model(module, tokenizer=encoder_tokenizer())


def test_the_planted_heads_of_an_encoder_are_named_by_offset_and_delimiter(bert):
    result = execute("offsets", bert, [TEXTS[at % len(TEXTS)] for at in range(16)])
    mass = result["mass_at"]
    assert result["shift"].values.tolist() == [-2, -1, 0, 1, 2]
    assert float(mass.sel(shift=-1, layer=0, head=0)) > 0.999
    assert float(mass.sel(shift=1, layer=0, head=3)) > 0.999
    assert float(result["delimiter_mass"].sel(delimiter="separator", layer=0, head=1)) > 0.999
    assert result.attrs["heads_by_type"] == {
        "offset -1": ["L0H0"], "offset +1": ["L0H3"], "separator": ["L0H1"],
    }  # fmt: skip
    # Nothing but L0H2 writes, and nothing reads it: no head can be shown to matter.
    assert result.attrs["note"].startswith("Too little to take a share of: in the 3 surest")
    assert result.attrs["verdict"] == "disagreement"


def test_masses_are_those_of_the_models_own_maps(random_bert):
    result = execute("offsets", random_bert, TEXTS)
    shifts, kinds = ([] for _ in range(2))
    for text in TEXTS:
        ids = random_bert.encode(text)
        whole, words = eager_maps(random_bert.module, ids).numpy(), text.split()
        shifts.append([np.diagonal(whole, -one, 2, 3).mean(-1) for one in range(-2, 3)])
        places = [
            [0], [len(ids) - 1], [at + 1 for at, word in enumerate(words) if word in ".,"],
        ]  # fmt: skip
        kinds.append([whole[..., position].sum(-1).mean(-1) for position in places])
    assert result["delimiter"].values.tolist() == ["beginning", "separator", "punctuation"]
    np.testing.assert_allclose(result["mass_at"], np.mean(shifts, axis=0), atol=1e-5)
    np.testing.assert_allclose(result["delimiter_mass"], np.mean(kinds, axis=0), atol=1e-5)


def test_heads_of_the_encoder_cluster_by_the_divergence_of_their_rows(bert):
    cap = capture(bert, TEXTS, stats=("lse",), keep=("q", "k", "z"))
    groups = similarity.run(cap, bert, clusters=4, skip=1)["cluster"].values
    uniform = {groups[0, 2], *groups[1]}
    planted = [groups[0, head] for head in (0, 1, 3)]
    assert len(uniform) == 1
    assert len({*planted, *uniform}) == 4


def test_offset_heads_of_the_bundled_model_need_nothing_but_their_offset(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=16)
    result = execute("offsets", bundled, task)
    alone, ablated, others, _ = result["moved"].values[:4]
    assert alone < 0.1 * ablated
    assert others > alone
    assert result.attrs["note"].startswith("Causal check agrees: their offset alone")
    # Two thousandths of a nat is nothing: the weight on full stops is flagged.
    assert "does not agree: hiding the delimiters" in result.attrs["note"]
    assert result.attrs["verdict"] == "disagreement"


def test_a_causal_model_has_no_later_offsets(circuit):
    result = execute("offsets", circuit, repeated(n=4, length=8))
    assert result["shift"].values.tolist() == [0, 1, 2]
    assert float(result["mass_at"].sel(shift=1).values[PREVIOUS]) > 0.999
    assert result["delimiter"].values.tolist() == ["beginning"]


def test_delimiters_of_a_text(bert, circuit):
    ids = [bert.encode(TEXTS[1])]
    assert positions(bert, ids) == {
        "beginning": [[0]], "separator": [[9]], "punctuation": [[4, 6]],
    }  # fmt: skip
    assert is_punctuation("…")
    assert not is_punctuation("1.")
    assert positions(circuit, [[5, 6]]) == {}


def test_prompts_without_delimiters_report_it(circuit):
    result = execute("offsets", circuit, [[5, 6, 7, 8], [9, 5, 6, 7]])
    assert "delimiter_mass" not in result
    assert "No delimiter is known" in result.attrs["note"]


def test_bad_input_is_refused(circuit):
    cap = capture(circuit, [[0, 5, 6, 7]], stats=("offset_mass",), offsets=(0, 1))
    check_refusal("capture", offsets.run, cap, circuit)

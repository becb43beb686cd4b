import architectures
import numpy as np
import pytest
import torch
import xarray as xr
from constructed import KEYS, WORDS, silent_gpt2, tokenizer
from refusals import check_refusal

from headscope.analyses import entropy, parallel_context
from headscope.analyses._runtime.runner import execute
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks

LENGTH, BLOCKS = 40, 4


@pytest.mark.requirement("A6")
def test_a_uniform_head_reaches_log_n_and_a_saturated_one_nothing(rotary_sink):
    ids = [[WORDS.index(word) for word in ("<bos>", *KEYS)]] * 2
    result = entropy.run(capture(rotary_sink, ids, stats=entropy.NEEDS))
    even = np.log(np.arange(2, len(ids[0]) + 1)).mean()
    np.testing.assert_allclose(result["entropy"].values, [[0, even]], atol=1e-3)
    np.testing.assert_allclose(result["entropy_share"].values, [[0, 1]], atol=1e-3)
    np.testing.assert_allclose(result["query_entropy_share"].values[1:], 0.5, atol=1e-3)
    assert np.isnan(result["query_entropy_share"].values[0])
    # The saturated head leaves other tokens nothing, so it has no entropy without the first one.
    np.testing.assert_allclose(result["entropy_share_without_first"], [[np.nan, 1]], atol=1e-3)
    assert result.attrs["heads_by_type"] == {"sharp": [], "broad": ["L0H1"]}


@pytest.mark.requirement("A6")
def test_only_the_share_of_an_even_head_stays_when_the_text_grows(rotary_sink):
    texts = ([[WORDS.index("apple")] * size] for size in (16, 64))
    short, long = (entropy.run(capture(rotary_sink, text, stats=entropy.NEEDS)) for text in texts)
    assert float(long["entropy"][0, 1]) > float(short["entropy"][0, 1]) + 1
    np.testing.assert_allclose(long["entropy_share"], short["entropy_share"], atol=1e-4)


@pytest.mark.requirement("A6")
def test_a_bidirectional_model_sees_all_keys_from_every_query():
    module = architectures.build("bert", num_hidden_layers=1)
    for weight in module.bert.encoder.layer[0].attention.self.query.parameters():
        torch.nn.init.zeros_(weight)
    model = load_model(module)
    result = entropy.run(capture(model, [[1, 2, 3, 4, 5, 6], [7, 8, 9]], stats=entropy.NEEDS))
    np.testing.assert_allclose(result["entropy"], (np.log(6) + np.log(3)) / 2, atol=1e-5)
    np.testing.assert_allclose(result["entropy_share"], 1, atol=1e-5)


@pytest.mark.requirement("A6")
def test_a_layer_without_a_map_is_missing_and_a_learned_sink_is_an_outcome():
    raw = np.full((2, 2, 1, 4), np.log(5.0))
    raw[:, 1] = np.nan
    order = {"causal": ("layer", [False, False]), "window": ("layer", [np.nan, np.nan])}
    sinks = {"sink_logit": (("layer", "head"), [[0.0], [np.nan]])}
    places = {"layer": [0, 1], "head": [0], "length": ("prompt", [4, 4])}
    dims = ("prompt", "layer", "head", "query")
    data = {"entropy": (dims, raw), "first_mass": (dims, raw * 0 + 0.2)}
    result = entropy.run(xr.Dataset(data, {**places, **order, **sinks}))
    assert float(result["entropy_share"][0, 0]) == 1
    assert np.isnan(result["entropy_share"].values[1, 0])


@pytest.fixture(scope="module")
def starts():
    """Two layers: L0H0 writes where it looked (at the token before, at itself where it sees no
    other), L1H0 attends to the tokens that attended to themselves: at every start of a text.
    """
    token, place, here, looked, out, size = 0, 36, 77, 78, 80, 128
    module = silent_gpt2(n_positions=LENGTH, n_embd=size, n_layer=2, n_head=1)
    words, places = torch.arange(len(WORDS)), torch.arange(LENGTH)
    with torch.no_grad():
        module.transformer.wte.weight[words, token + words] = 1.0
        module.transformer.wpe.weight[places, place + places] = 1.0
        # A position in so small a unit that it does not change the norm of the residual stream.
        module.transformer.wpe.weight[places, here] = places * 1e-3
        module.lm_head.weight[words, out + words] = 1.0
        first, second = (block.attn for block in module.transformer.h)
        first.c_attn.weight[place + places[1:], places[:-1]] = 4.0
        first.c_attn.weight[place + places, size + places] = 1.0
        first.c_attn.weight[here, 2 * size] = 1.0
        first.c_proj.weight[0, looked] = 1 / 8
        second.c_attn.bias[0] = 25e3
        second.c_attn.weight[looked, size] = 1.0
        second.c_attn.weight[here, size] = -1.0
        second.c_attn.weight[token + words, 2 * size + words] = 1.0
        second.c_proj.weight[words, out + words] = 0.1
    return load_model(module, tokenizer=tokenizer())


@pytest.mark.requirement("A6")
def test_parallel_blocks_raise_entropy_by_log_blocks_and_a_shared_prefix_takes_it_back(starts):
    drawn = np.random.default_rng(0).integers(1, len(WORDS), size=(3, LENGTH))
    cap = capture(starts, drawn.tolist(), stats=())
    result = parallel_context.run(cap, starts, blocks=BLOCKS, prefix=1)
    # One start in the whole text, one a block without the prefix, the prefix alone with it.
    np.testing.assert_allclose(result["entropy_rise"], [[0], [np.log(BLOCKS)]], atol=0.01)
    np.testing.assert_allclose(result["prefix_effect"], [[0], [-np.log(BLOCKS)]], atol=0.01)


@pytest.mark.requirement("A6")
def test_blocks_cost_the_bundled_model_and_a_shared_prefix_gives_most_of_it_back(bundled):
    task = tasks.make("recall", tokenizer=bundled.tokenizer, n=6, seed=3)
    result = execute("parallel_context", bundled, task)
    whole, apart, shared = result["question_loss"].values
    assert whole < shared < apart
    assert apart - whole > 0.2
    assert (apart - shared) / (apart - whole) > 0.3
    entropies = result["question_entropy"].values
    assert entropies[1] > entropies[0]


# Prefix, blocks and question of a text of 16 tokens, and positions that start anew in each block,
# the prefix before all blocks or before the first alone.
MEMBERS = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4])
RESTARTED = {
    True: [0, 1, 2, 3, 4, 2, 3, 4, 5, 2, 3, 4, 6, 7, 8, 9],
    False: [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 5, 6, 7, 8],
}


@pytest.mark.requirement("A6")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("restart", [False, True])
def test_blocks_agree_with_eager_attention_under_their_mask_and_positions(name, restart):
    module = architectures.build(name)
    model, ids = load_model(module), [int(one) for one in np.arange(3, 3 + 7 * 16, 7) % 50]
    result = parallel_context.run(
        capture(model, [ids], stats=()), model, blocks=3, prefix=2, restart=restart
    )
    losses, entropies = [], []
    for shared in (None, False, True):
        own, given = MEMBERS[:, None], MEMBERS[None]
        before = (given == 0) & ((own == 1) | bool(shared))
        seen = np.tri(16, dtype=bool)
        seen &= (own == given) | (own == 4) | before | (shared is None)
        mask = torch.zeros(1, 1, 16, 16).masked_fill(~torch.tensor(seen), torch.finfo().min)
        places = RESTARTED[shared] if restart and shared is not None else list(range(16))
        position_ids = torch.tensor([places])
        logits, maps = architectures.eager(
            module, torch.tensor([ids]), mask, position_ids=position_ids
        )
        rows = torch.stack(maps)[:, 0, :, 12:].double()
        entropies.append(-torch.xlogy(rows, rows).sum(-1).mean(-1).numpy())
        loss = torch.nn.functional.cross_entropy(logits[0, 11:-1], torch.tensor(ids[12:]))
        losses.append(float(loss))
    np.testing.assert_allclose(result["question_loss"], losses, atol=2e-6)
    whole, apart, shared = entropies
    np.testing.assert_allclose(result["entropy_rise"], apart - whole, atol=2e-6)
    np.testing.assert_allclose(result["prefix_effect"], shared - apart, atol=2e-6)
    assert ("anew in each block" in result.attrs["convention"]) == restart


@pytest.mark.requirement("A6")
def test_positions_that_start_anew_change_the_numbers(random_llama):
    drawn = np.random.default_rng(0).integers(1, len(WORDS), size=(1, LENGTH)).tolist()
    cap = capture(random_llama, drawn, stats=())
    kept, anew = (
        parallel_context.run(cap, random_llama, restart=one)["question_loss"].values
        for one in (False, True)
    )
    assert kept[0] == anew[0]
    assert np.abs(kept[1:] - anew[1:]).min() > 1e-5


def test_positions_are_refused_where_a_model_takes_none():
    cap = capture(model := load_model(architectures.build("bloom")), [[3] * LENGTH], stats=())
    check_refusal("restart", parallel_context.run, cap, model, restart=True)
    bare = cap.drop_vars("alibi_slope")
    check_refusal("positions", parallel_context.run, bare, model, restart=True)


def test_bad_input_is_refused(starts):
    check_refusal("broad", entropy.run, xr.Dataset(), sharp=0.6, broad=0.4)
    short = capture(starts, [[1, 2, 3, 4, 5, 6]], stats=())
    check_refusal("blocks", parallel_context.run, short, starts)
    with pytest.raises(HeadscopeError, match="causal order"):
        parallel_context.run(short.assign_coords(causal=("layer", [False, False])), starts)

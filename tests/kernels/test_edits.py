"""Edits inside the pass do what they say, each by its own definition."""

import math
from typing import Any

import pytest
import torch
from refusals import check_refusal

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, WeightEdits, attend, attend_dense
from headscope.kernels.errors import InvalidInput

LENGTH = 90
PATTERN = Request(stats=("pattern", "received", "lse"))


def edited(inputs: Any, **fields: Any) -> dict[str, torch.Tensor]:
    return attend(inputs.q, inputs.k, inputs.v, PATTERN, AttentionSpec(edits=WeightEdits(**fields)))


def plain(inputs: Any, **options: Any) -> torch.Tensor:
    """The unedited weights, from float64."""
    return attend_dense(inputs.q, inputs.k, inputs.v, PATTERN, AttentionSpec(**options))["pattern"]


@pytest.mark.requirement("A5")
def test_log_gamma_scales_a_key_and_renormalises(draw):
    inputs, gamma = draw(LENGTH), torch.rand(1, 4, LENGTH) * 3
    weights = plain(inputs) * gamma[:, :, None]
    expected = (weights / weights.sum(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(edited(inputs, key_bias=gamma.log())["pattern"], expected)
    unchanged = edited(inputs, key_bias=torch.ones_like(gamma).log())["pattern"]
    torch.testing.assert_close(unchanged, plain(inputs).float())


@pytest.mark.requirement("D5")
def test_a_knocked_out_key_is_as_good_as_absent(draw):
    inputs, gone = draw(LENGTH), 7
    bias = torch.zeros(1, 1, LENGTH)
    bias[..., gone] = -math.inf
    left = torch.arange(LENGTH) != gone
    spec = AttentionSpec(causal=False)
    without = attend(inputs.q, inputs.k[:, :, left], inputs.v[:, :, left], PATTERN, spec)
    spec = AttentionSpec(causal=False, edits=WeightEdits(key_bias=bias))
    result = attend(inputs.q, inputs.k, inputs.v, PATTERN, spec)
    torch.testing.assert_close(result["z"], without["z"])
    torch.testing.assert_close(result["lse"], without["lse"])
    assert (result["received"][..., gone] == 0).all()


def test_a_row_without_a_key_reports_it_and_gives_nothing(draw):
    bias = torch.zeros(1, 1, LENGTH)
    bias[..., 0] = -math.inf
    result = edited(draw(LENGTH), key_bias=bias)
    assert (result["z"][:, :, 0] == 0).all()
    assert (result["lse"][:, :, 0] == -math.inf).all()
    assert result["pattern"][:, :, 0].isnan().all()
    assert result["z"][:, :, 1:].isfinite().all()


@pytest.mark.requirement("D5")
def test_cut_spans_hide_one_group_of_keys_from_one_group_of_queries(draw):
    inputs = draw(LENGTH)
    queries = (torch.arange(LENGTH) >= 60).long().expand(2, -1)
    keys = ((torch.arange(LENGTH) >= 20) & (torch.arange(LENGTH) < 30)).long().expand(2, -1)
    table = torch.tensor([[[0.0, 0.0], [0.0, -math.inf]]])
    weights = edited(inputs, span_bias=table, query_spans=queries, key_spans=keys)["pattern"]
    torch.testing.assert_close(weights[:, :, :60], plain(inputs).float()[:, :, :60])
    assert (weights[:, :, 60:, 20:30] == 0).all()
    torch.testing.assert_close(weights[:, :, 60:].sum(dim=-1), torch.ones(2, 4, 30))


def test_a_streaming_head_is_a_window_with_sinks(draw):
    inputs = draw(LENGTH)
    first, recent = torch.tensor([0, 0, 3, 0]), torch.tensor([16, 0, 8, 1])
    weights = edited(inputs, first=first, recent=recent)["pattern"]
    torch.testing.assert_close(weights[:, 0], plain(inputs, window=16)[:, 0].float())
    torch.testing.assert_close(weights[:, 1], plain(inputs)[:, 1].float())
    back = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    kept = (back < 8) | (torch.arange(LENGTH) < 3)
    expected = torch.where(kept, plain(inputs)[:, 2], 0.0)
    expected /= expected.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(weights[:, 2], expected.float())
    torch.testing.assert_close(weights[:, 3], torch.eye(LENGTH).expand(2, -1, -1))


def test_a_temperature_is_a_factor_of_the_scale(draw):
    inputs = draw(LENGTH)
    weights = edited(inputs, temperature=torch.tensor([1.0, 4.0, 0.5, 1.0]))["pattern"]
    for head, scale in enumerate((1.0, 0.25, 2.0, 1.0)):
        expected = plain(inputs, scale=scale / math.sqrt(8))[:, head]
        torch.testing.assert_close(weights[:, head], expected.float(), rtol=1e-5, atol=1e-6)


def test_a_gate_scales_the_output_and_leaves_the_weights(draw):
    inputs, gate = draw(LENGTH), torch.tensor([[0.0, 1.0, -2.0, 0.5], [1.0, 1.0, 1.0, 0.0]])
    result = edited(inputs, gate=gate)
    before = attend(inputs.q, inputs.k, inputs.v, PATTERN)
    assert torch.equal(result["z"], before["z"] * gate[:, :, None, None])
    assert torch.equal(result["pattern"].nan_to_num(), before["pattern"].nan_to_num())


SPANS = {
    "span_bias": torch.zeros(1, 2, 2), "query_spans": torch.full((2, 6), 2),
    "key_spans": torch.zeros(2, 6).long(),
}  # fmt: skip


@pytest.mark.unchecked_signatures
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"gate": torch.ones(4)}, "gate"),
        ({"key_bias": torch.ones(1, 3, 6)}, "key_bias"),
        ({"first": torch.ones(4).long()}, "first, recent"),
        ({"first": torch.ones(4).long(), "recent": -torch.ones(4).long()}, "recent"),
        ({"temperature": torch.tensor([1.0, 0.0, 1.0, 1.0])}, "temperature"),
        ({"span_bias": torch.zeros(1, 2, 2)}, "span_bias"),
        (SPANS, "query_spans"),
    ],
)
def test_edits_that_do_not_fit_are_refused(fields, field):
    q = torch.zeros(2, 4, 6, 8)
    with pytest.raises(InvalidInput) as refusal:
        attend(q, q, q, Request(stats=()), AttentionSpec(edits=WeightEdits(**fields)))
    assert refusal.value.field == field
    assert "\n" not in str(refusal.value)


SIGMOID = tuple(name for name in statistics.names() if not statistics.load(name).distribution)


@pytest.mark.requirement("F7")
@pytest.mark.parametrize("options", [{}, {"window": 9}, {"causal": False}], ids=str)
def test_sigmoid_rows_agree_with_dense_float64(options, draw, agree):
    inputs = draw(LENGTH)
    bias = torch.full((1, 1, 1, 1), -math.log(LENGTH))
    spec = AttentionSpec(sigmoid=True, bias=bias, **options)
    chosen = tuple(
        name for name in SIGMOID if name not in ("topk_key", "effective_span", "span_without_first")
    )
    request = Request(stats=chosen, targets=inputs.request.targets, spans=inputs.request.spans)
    dense = attend_dense(inputs.q, inputs.k, inputs.v, request, spec)
    for name, values in attend(inputs.q, inputs.k, inputs.v, request, spec).items():
        agree(name, values, dense[name])
    scores = inputs.q[0, 0] @ inputs.k[0, 0].T / math.sqrt(8) - math.log(LENGTH)
    seen = dense["pattern"][0, 0] > 0
    expected = torch.where(seen, scores.sigmoid(), 0.0)
    torch.testing.assert_close(dense["pattern"][0, 0].float(), expected)


@pytest.mark.requirement("F7")
@pytest.mark.parametrize("name", sorted(set(statistics.names()) - set(SIGMOID)))
def test_statistics_of_a_distribution_are_refused_for_sigmoid_rows(name):
    q = torch.zeros(1, 1, 3, 2)
    for engine in (attend, attend_dense):
        check_refusal("stats", engine, q, q, q, Request(stats=(name,)), AttentionSpec(sigmoid=True))


@pytest.mark.requirement("F7")
def test_learned_sinks_take_what_the_keys_lack(draw):
    inputs = draw(LENGTH)
    sinks = torch.tensor([0.0, 2.0, -3.0, 9.0])
    request = Request(stats=("learned_sink_mass", "pattern", "lse"))
    with_sinks = attend(inputs.q, inputs.k, inputs.v, request, AttentionSpec(sinks=sinks))
    total = with_sinks["pattern"].sum(dim=-1) + with_sinks["learned_sink_mass"]
    torch.testing.assert_close(total, torch.ones_like(total))
    # The same as a key of this logit and value 0, which every query sees.
    plain_lse = attend(inputs.q, inputs.k, inputs.v, request)["lse"]
    torch.testing.assert_close(with_sinks["lse"], plain_lse.logaddexp(sinks[None, :, None]))


@pytest.mark.requirement("F6")
def test_packed_sequences_are_as_good_as_apart(draw):
    lengths = (40, 1, 49)
    rows = ("lse", "entropy", "first_mass", "recent_mass", "distance", "effective_span")
    request = Request(stats=(*rows, "received", "received_last"), first=2, last=5)
    inputs = draw(LENGTH)
    together = attend(inputs.q, inputs.k, inputs.v, request, AttentionSpec(lengths=lengths))
    start = 0
    for length in lengths:
        piece = slice(start, start + length)
        apart = attend(*(one[:, :, piece] for one in (inputs.q, inputs.k, inputs.v)), request)
        for name, values in apart.items():
            torch.testing.assert_close(together[name][:, :, piece], values, equal_nan=True)
        start += length


@pytest.mark.requirement("F5")
@pytest.mark.parametrize("window", [None, 20])
def test_decode_rows_with_a_cache_are_rows_of_the_whole(window, draw):
    inputs, prefix = draw(60), 40
    stats = tuple(
        name for name in statistics.names()
        if statistics.load(name).by_query and name not in ("target_mass", "pattern")
    )  # fmt: skip
    request = Request(stats=stats, spans=inputs.request.spans, k=3)
    whole = attend(inputs.q, inputs.k, inputs.v, request, AttentionSpec(window=window))
    for step in range(prefix, 60):
        now = slice(0, step + 1)
        request = Request(stats=stats, spans=inputs.request.spans[:, now], k=3)
        q, k, v = inputs.q[:, :, [step]], inputs.k[:, :, now], inputs.v[:, :, now]
        row = attend(q, k, v, request, AttentionSpec(window=window))
        for name, values in row.items():
            expected = whole[name][:, :, [step]]
            bins = slice(min(values.shape[-1], expected.shape[-1]))
            both = values[..., bins], expected[..., bins]
            torch.testing.assert_close(*both, rtol=1e-5, atol=2e-6, equal_nan=True)


@pytest.mark.unchecked_signatures
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"lengths": (3, 0)}, "lengths"),
        ({"lengths": (3, 4)}, "lengths"),
        ({"slopes": torch.ones(3)}, "slopes"),
        ({"bias": torch.ones(6, 6)}, "bias"),
        ({"sinks": torch.ones(1, 4)}, "sinks"),
        ({"sinks": torch.ones(4), "sigmoid": True}, "sinks"),
    ],
)
def test_variants_that_do_not_fit_are_refused(options, field):
    q = torch.zeros(2, 4, 6, 8)
    for engine in (attend, attend_dense):
        with pytest.raises(InvalidInput) as refusal:
            engine(q, q, q, Request(stats=()), AttentionSpec(**options))
        assert refusal.value.field == field


@pytest.mark.requirement("D5")
def test_a_fixed_pattern_takes_the_place_of_the_weights(draw):
    inputs = draw(LENGTH)
    fixed = torch.rand(1, 4, LENGTH, LENGTH).tril() + torch.eye(LENGTH)
    fixed /= fixed.sum(dim=-1, keepdim=True)
    fixed[:, 1] = torch.nan
    fixed[:, 2, :40] = torch.nan
    result = edited(inputs, pattern=fixed)
    own = fixed.isnan().expand(2, -1, -1, -1)
    before = attend(inputs.q, inputs.k, inputs.v, PATTERN)["pattern"]
    expected = torch.where(own, before, fixed)
    torch.testing.assert_close(result["pattern"], expected)
    torch.testing.assert_close(result["z"], expected @ inputs.v.repeat_interleave(2, dim=1))


def test_edits_combine(draw):
    inputs = draw(LENGTH)
    keys = torch.randn(1, 1, LENGTH)
    spans = torch.arange(LENGTH).expand(2, -1)
    shared = {"key_bias": keys, "span_bias": torch.randn(1, 2, 3)}
    one = WeightEdits(
        **shared, gate=torch.rand(1, 4), query_spans=spans % 2, key_spans=spans % 4 - 1,
        first=torch.tensor([1, 0, 0, 0]), recent=torch.tensor([9, 0, 0, 0]),
        temperature=torch.tensor([1.0, 2.0, 3.0, 4.0]),
    )  # fmt: skip
    other = WeightEdits(
        **shared, gate=torch.rand(2, 4), query_spans=spans % 3 - 1, key_spans=spans % 3,
        first=torch.tensor([0, 0, 2, 0]), recent=torch.tensor([0, 0, 4, 0]),
        temperature=torch.tensor([2.0, 2.0, 1.0, 1.0]),
    )  # fmt: skip
    # Everything that can be said as one matrix, in one matrix.
    bias = torch.zeros(2, 1, LENGTH, LENGTH) + 2 * keys[:, :, None]
    for each in (one, other):
        padded = torch.nn.functional.pad(each.span_bias, (0, 1, 0, 1))
        bias += padded[0][each.query_spans[:, :, None], each.key_spans[:, None]][:, None]
    temperature = one.temperature * other.temperature
    alone = WeightEdits(
        gate=one.gate * other.gate, temperature=temperature,
        first=torch.tensor([1, 0, 2, 0]), recent=torch.tensor([9, 0, 4, 0]),
    )  # fmt: skip
    spec = AttentionSpec(bias=bias * temperature[:, None, None], edits=alone)
    expected = attend_dense(inputs.q, inputs.k, inputs.v, PATTERN, spec)
    both = AttentionSpec(edits=one.then(other))
    for name, values in attend(inputs.q, inputs.k, inputs.v, PATTERN, both).items():
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=1e-5)
    check_refusal("recent", one.then, one)

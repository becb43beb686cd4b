"""Every statistic of the registry, in every variant, against the dense float64 oracle."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from headscope.kernels import aliases, statistics
from headscope.kernels.attention import attend
from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.dense import attend_dense
from headscope.kernels.request import Request
from headscope.kernels.statistic import MERGES
from headscope.kernels.visibility import Visibility
from headscope.kernels.weight_edits import WeightEdits

LENGTHS = (1, 63, 100, 257)


def keep(length: int, *kept: slice) -> Tensor:
    mask = torch.zeros(len(kept), length, dtype=torch.bool)
    for row, part in zip(mask, kept, strict=True):
        row[part] = True
    return mask


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def holes(*shape: int) -> Tensor:
    bias = noise(*shape)
    return bias.masked_fill(bias > 0.5, -torch.inf)


def packed(length: int) -> tuple[int, ...]:
    parts = (length // 5, 1, length - length // 5 - 1)
    return parts if min(parts) > 0 else (length,)


def streaming() -> WeightEdits:
    return WeightEdits(first=torch.tensor([2, 0, 1, 4]), recent=torch.tensor([5, 1, 0, 40]))


def spec(name: str, length: int) -> dict[str, Any]:
    """Name the arguments of a variant at a length."""
    half = max(length // 2, 1)
    late = slice(length // 3, None)
    variants: dict[str, dict[str, Any]] = {
        "causal": {},
        "one head a KV head": {"kv_heads": 4},
        "one KV head": {"kv_heads": 1},
        "narrow values": {"value_size": 3},
        "wide values": {"value_size": 12},
        "given scale": {"scale": 0.11},
        "negative scale": {"scale": -0.3},
        "softcap": {"softcap": 2.0, "sigma": 3.0},
        "window": {"window": 9},
        "window of one": {"window": 1},
        "window longer than a panel": {"window": 150},
        "bidirectional": {"causal": False},
        "bidirectional window": {"causal": False, "window": 9},
        "fewer queries than keys": {"queries": half},
        "more queries than keys": {"keys": half},
        "fewer queries in a window": {"queries": half, "window": 20},
        "cross": {"causal": False, "keys": length + 30},
        "cross with padded keys": {
            "causal": False,
            "keys": length + 30,
            "key_mask": keep(length + 30, slice(3, None), slice(0, 25)),
        },
        "padded left and right": {"key_mask": keep(length, late, slice(0, half))},
        "padded in a window": {"key_mask": keep(length, late, slice(0, half)), "window": 9},
        "padded, cached keys": {
            "queries": half,
            "key_mask": keep(length, late, slice(0, length - length // 4)),
        },
        "holes in the keys": {"key_mask": keep(length, slice(0, None, 3), slice(0, None, 2))},
        "bidirectional padded": {
            "causal": False,
            "key_mask": keep(length, late, slice(0, half)),
            "query_mask": keep(length, late, slice(0, half)),
        },
        "queries left out": {"query_mask": keep(length, late, slice(0, half))},
        "small ragged tiles": {"request": {"tile": 7, "clip": None, "first": 300, "recent": 300}},
        "tiles of a token": {"request": {"tile": 1, "recent": 1, "k": 1}, "window": 70},
        "tiles longer than a panel": {"request": {"tile": 200, "k": 120, "share": 0.01}},
        "sharp": {"sigma": 64.0},
        "sharp, wide heads": {"sigma": 64.0, "size": 64},
        "sharp bidirectional": {"sigma": 64.0, "causal": False, "softcap": 900.0},
        "packed": {"lengths": packed(length)},
        "packed in a window": {"lengths": packed(length), "window": 9},
        "packed, bidirectional": {"lengths": packed(length), "causal": False},
        "packed and padded": {
            "lengths": packed(length),
            "key_mask": keep(length, late, slice(0, None, 2)),
        },
        "alibi": {"slopes": torch.tensor([0.5, 0.25, 0.1, 0.0])},
        "alibi, bidirectional": {"slopes": torch.tensor([0.5, 0.1, 1.0, 2.0]), "causal": False},
        "bias": {"bias": noise(1, 4, length, length), "causal": False},
        "bias that hides": {"bias": holes(2, 1, length, length)},
        "bias of a head": {"bias": noise(1, 4, 1, 1)},
        "sinks": {"sinks": torch.tensor([0.0, 3.0, -20.0, 60.0])},
        "sinks, sharp": {"sinks": torch.tensor([90.0, 3.0, -200.0, 600.0]), "sigma": 64.0},
        "sinks in a window, padded": {
            "sinks": torch.tensor([0.0, 3.0, -2.0, 1.0]),
            "window": 9,
            "key_mask": keep(length, late, slice(0, half)),
        },
        "gates": {"edits": WeightEdits(gate=noise(1, 4))},
        "temperatures": {
            "edits": WeightEdits(temperature=torch.tensor([0.5, 1.0, 2.0, 9.0])),
            "softcap": 5.0,
            "sinks": torch.tensor([0.0, 3.0, -20.0, 1.0]),
            "bias": holes(1, 4, 1, length),
        },
        "keys weighed": {"edits": WeightEdits(key_bias=noise(2, 1, length))},
        "keys knocked out": {"edits": WeightEdits(key_bias=holes(1, 4, length))},
        "spans cut": {
            "edits": WeightEdits(
                span_bias=torch.tensor([[[0.0, -torch.inf], [1.5, 0.0]]]),
                query_spans=(torch.arange(length) * 3 // length - 1).expand(2, -1),
                key_spans=(torch.arange(length) % 3 - 1).expand(2, -1),
            ),
        },
        "streaming heads": {"edits": streaming(), "key_mask": keep(length, late, slice(0, half))},
        "streaming heads, packed": {"edits": streaming(), "lengths": packed(length)},
        "all edits": {
            "edits": replace(
                streaming(),
                gate=noise(2, 4),
                key_bias=holes(2, 4, length),
                temperature=torch.tensor([0.5, 1.0, 2.0, 9.0]),
            ),
            "slopes": torch.tensor([0.5, 0.25, 0.1, 0.0]),
            "softcap": 4.0,
            "window": 30,
        },
        "bfloat16": {"dtype": torch.bfloat16},
        "float16": {"dtype": torch.float16, "sigma": 8.0},
    }
    return {"queries": length, "keys": length, **variants[name]} if name else {"": variants}


VARIANTS = tuple(spec("", 100)[""])


@pytest.fixture(scope="module")
def both(draw: Any) -> Any:
    @cache
    def run(name: str, length: int) -> tuple[dict[str, Tensor], ...]:
        inputs = draw(**spec(name, length))
        options = AttentionSpec(**inputs.options)
        return (
            attend(*inputs, options),
            attend_dense(*inputs, options),
            attend(*inputs, options, engine="panels"),
        )

    return run


@pytest.mark.seed("F1", "F5", "F6")
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("statistic", statistics.names())
def test_both_engines_agree_with_dense_float64(
    statistic: str, name: str, both: Any, draw: Any, agree: Any
) -> None:
    for length in LENGTHS:
        swept, dense, panels = both(name, length)
        logit = max(dense["lse"][dense["lse"].isfinite()].abs().max().item(), 1.0)
        for got in (swept[statistic], panels[statistic]):
            if statistic in CHOICES:
                assert torch.equal(got.isnan(), dense[statistic].isnan())
                inputs = draw(**spec(name, length))
                CHOICES[statistic](got, dense, inputs, 1e-6 + logit * 2**-24)
            else:
                agree(statistic, got, dense[statistic], logit=logit)


def check_keys(got: Tensor, dense: dict[str, Tensor], inputs: Any, near: float) -> None:
    """Fail unless these are different keys, of the weights of their ranks."""
    weights = dense["pattern"].gather(3, got.nan_to_num().long())
    torch.testing.assert_close(
        weights.masked_fill(got.isnan(), torch.nan),
        dense["topk"],
        rtol=0,
        atol=near,
        equal_nan=True,
    )
    ordered = got.sort(dim=-1).values
    assert not (ordered[..., 1:] == ordered[..., :-1]).any()


def check_reach(got: Tensor, dense: dict[str, Tensor], inputs: Any, near: float) -> None:
    """Fail unless this many tokens hold the share, and one token less does not."""
    weights = dense["pattern"]
    queries, keys = weights.shape[2:]
    position = torch.arange(queries)[:, None] + (
        keys - queries if inputs.options.get("causal", True) else 0
    )
    distance = (position - torch.arange(keys)).abs()
    for less in (0, 1):
        held = torch.where(distance < got[..., None] - less, weights, 0.0).sum(dim=-1)
        held = (held - inputs.request.share * weights.sum(dim=-1))[~got.isnan()]
        assert (held <= near).all() if less else (held >= -near).all()


# Rounding may swap two keys of nearly one weight, or move a sum across the share: what is checked
# is that the choice is right within the rounding.
CHOICES = {"topk_key": check_keys, "effective_span": check_reach}


def test_an_earlier_name_is_taken_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="'sink_mass' is now 'learned_sink_mass'"):
        assert Request(stats=("entropy", "sink_mass")).stats == ("entropy", "learned_sink_mass")
    assert set(aliases.STATISTICS.values()) <= set(statistics.names())
    assert not set(aliases.STATISTICS) & set(statistics.names())


@pytest.mark.parametrize("statistic", statistics.names())
def test_declaration_is_complete(statistic: str) -> None:
    declared = statistics.load(statistic)
    assert declared.name == statistic
    assert declared.merge in MERGES
    assert declared.units
    assert declared.formula
    assert declared.source
    assert 0 < len(declared.title) < 80
    extents = {"query", "key", "query_tile", "key_tile", "size"}
    assert set(declared.dims) - extents == set(declared.labels)
    assert "query" not in declared.dims[1:], "query comes first among the dims"
    assert declared.low is None or declared.high is None or declared.low < declared.high


@pytest.mark.parametrize("statistic", statistics.names())
def test_values_stay_inside_the_declared_range(statistic: str, both: Any) -> None:
    declared = statistics.load(statistic)
    for name in VARIANTS:
        values = both(name, 100)[0][statistic]
        values = values[values.isfinite()]
        if declared.low is not None:
            assert values.min() >= declared.low - 1e-6
        if declared.high is not None:
            assert values.max() <= declared.high + 1e-6


def one_too_far(self: Visibility) -> Tensor:
    return (self.positions + 2).clamp(0, self.keys)


def one_too_near(self: Visibility) -> Tensor:
    return self.positions.clamp(0, self.keys)


def one_too_wide(self: Visibility) -> Tensor:
    return (self.positions - self.window).clamp(0, self.keys)


def every_query(self: Visibility) -> Tensor:
    return torch.ones(len(self.key_mask), self.queries, dtype=torch.bool)


def no_shift(self: Visibility) -> int:
    return 0


MUTANTS = {
    "a query sees the next key": ("high", one_too_far, "causal"),
    "a query misses its own key": ("high", one_too_near, "causal"),
    "the window is one key too wide": ("low", one_too_wide, "window"),
    "padded queries count": ("valid_queries", every_query, "padded left and right"),
    "cached keys are forgotten": ("shift", no_shift, "fewer queries than keys"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_mask_is_noticed(
    mutant: str, draw: Any, agree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute, wrong, name = MUTANTS[mutant]
    inputs = draw(**spec(name, 63))
    dense = attend_dense(*inputs, AttentionSpec(**inputs.options))
    monkeypatch.setattr(Visibility, attribute, property(wrong))
    panels = attend(*inputs, AttentionSpec(**inputs.options))
    for statistic in ("z", "entropy", "distance", "pooled_mean"):
        with pytest.raises(AssertionError):
            agree(statistic, panels[statistic], dense[statistic])


@pytest.mark.seed("F3")
@pytest.mark.parametrize("rows", [16, 48, 257])
@pytest.mark.parametrize("elements", [1, 12_000, 1 << 30])
@pytest.mark.parametrize("name", ["causal", "window", "padded left and right", "one KV head"])
def test_the_cut_into_panels_does_not_matter(
    name: str, elements: int, rows: int, draw: Any, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.kernels.panels.plan.ROWS", rows)
    monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", elements)
    inputs = draw(**spec(name, 257))
    swept, _, panels = both(name, 257)
    for engine, usual in (("auto", swept), ("panels", panels)):
        result = attend(*inputs, AttentionSpec(**inputs.options), engine=engine)
        for statistic in statistics.names():
            if statistic in CHOICES:
                changed = (result[statistic] - usual[statistic]).nan_to_num() != 0
                assert changed.float().mean() < 1e-3
            else:
                torch.testing.assert_close(
                    result[statistic], usual[statistic], rtol=2e-6, atol=2e-6, equal_nan=True
                )


NEW_STATISTIC = '''"""Sum of squared weights: a statistic from elsewhere."""

from headscope.kernels.weight_edits import WeightEdits
from headscope.kernels.statistic import Statistic

STATISTIC = Statistic(
    name="square_sum", dims=("query",), merge="average", units="share", low=0.0, high=1.0,
    scale="sequential", formula="Σ_j P_ij²", source="a test", execution="E3", doc=__doc__,
    panel=lambda panel: panel.weights.square().sum(dim=-1),
    dense=lambda whole: whole.weights.norm(dim=-1).square(),
)
'''


NEW_DIM = '''"""Share of attention on every third key: a statistic with a dim of its own."""

import torch
from headscope.kernels.weight_edits import WeightEdits
from headscope.kernels.statistic import Statistic

def of_panel(panel):
    columns = [(third - panel.keys.start) % 3 for third in range(3)]
    return torch.stack([panel.weights[..., at::3].sum(dim=-1) for at in columns], dim=-1)

def of_whole(whole):
    third = torch.nn.functional.one_hot(torch.arange(whole.weights.shape[3]) % 3, 3)
    return torch.einsum("bhqk,kt->bhqt", whole.weights, third.double())

STATISTIC = Statistic(
    name="thirds", dims=("query", "third"), merge="average", units="share", low=0.0, high=1.0,
    scale="sequential", formula="Σ_{j % 3 = third} P_ij", source="a test", execution="E2",
    doc=__doc__, panel=of_panel, dense=of_whole, labels={"third": lambda request, length: range(3)},
)
'''


@pytest.mark.parametrize(("name", "text"), [("square_sum", NEW_STATISTIC), ("thirds", NEW_DIM)])
def test_a_statistic_is_one_new_file(
    name: str, text: str, tmp_path: Any, draw: Any, agree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(statistics, "__path__", [*statistics.__path__, str(tmp_path)])
    assert name in statistics.names()
    inputs = draw(100)
    assert name in inputs.request.stats
    agree(name, attend(*inputs)[name], attend_dense(*inputs)[name])

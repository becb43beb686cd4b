"""Every statistic of the registry, in every variant, against the dense float64 oracle."""

from functools import cache
from typing import Any

import pytest
import torch
from attention_inputs import CHOICES, VARIANTS, spec
from torch import Tensor

from headscope.kernels import aliases, statistics
from headscope.kernels.api import AttentionSpec, Request, attend, attend_dense
from headscope.kernels.statistic import MERGES
from headscope.kernels.visibility import Visibility

LENGTHS = (1, 63, 100, 257)


@pytest.fixture(scope="module")
def both(draw: Any) -> Any:
    @cache
    def run(name: str, length: int) -> tuple[dict[str, Tensor], ...]:
        inputs = draw(**spec(name, length))
        options = AttentionSpec(**inputs.options)
        swept, panels = (attend(*inputs, options, engine=one) for one in ("auto", "panels"))
        return swept, attend_dense(*inputs, options), panels

    return run


@pytest.mark.requirement("F1", "F5", "F6")
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("statistic", statistics.names())
def test_both_engines_agree_with_dense_float64(statistic, name, both, draw, agree):
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


def test_an_earlier_name_is_taken_with_a_warning():
    with pytest.warns(FutureWarning, match="'sink_mass' is now 'learned_sink_mass'"):
        assert Request(stats=("entropy", "sink_mass")).stats == ("entropy", "learned_sink_mass")
    assert set(aliases.STATISTICS.values()) <= set(statistics.names())
    assert not set(aliases.STATISTICS) & set(statistics.names())


@pytest.mark.parametrize("statistic", statistics.names())
def test_declaration_is_complete(statistic):
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
def test_values_stay_inside_the_declared_range(statistic, both):
    declared = statistics.load(statistic)
    for name in VARIANTS:
        values = both(name, 100)[0][statistic]
        values = values[values.isfinite()]
        if not values.numel():
            continue
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
def test_a_wrong_mask_is_noticed(mutant, draw, agree, monkeypatch):
    attribute, wrong, name = MUTANTS[mutant]
    inputs = draw(**spec(name, 63))
    dense = attend_dense(*inputs, AttentionSpec(**inputs.options))
    monkeypatch.setattr(Visibility, attribute, property(wrong))
    panels = attend(*inputs, AttentionSpec(**inputs.options))
    for statistic in ("z", "entropy", "distance", "pooled_mean"):
        with pytest.raises(AssertionError):
            agree(statistic, panels[statistic], dense[statistic])


@pytest.mark.requirement("F3")
@pytest.mark.parametrize(
    ("rows", "elements"), [(16, 1), (16, 1 << 30), (48, 12_000), (257, 1), (257, 12_000)]
)
@pytest.mark.parametrize("name", ["causal", "window", "padded left and right", "one KV head"])
def test_the_cut_into_panels_does_not_matter(name, elements, rows, draw, both, monkeypatch):
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
                actual, expected = result[statistic], usual[statistic]
                torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


NEW_STATISTIC = '''"""Sum of squared weights: a statistic from elsewhere."""

from headscope.kernels.weight_edits import WeightEdits
from headscope.kernels.statistic import Statistic

STATISTIC = Statistic(
    name="square_sum", dims=("query",), merge="average", units="share", low=0.0, high=1.0,
    scale="sequential", formula="Σ_j P_ij²", source="a test", doc=__doc__,
    panel=lambda panel: panel.weights.square().sum(dim=-1),
    dense=lambda dense: dense.weights.norm(dim=-1).square(),
)
'''


NEW_DIM = '''"""Share of attention on every third key: a statistic with a dim of its own."""

import torch
from headscope.kernels.weight_edits import WeightEdits
from headscope.kernels.statistic import Statistic

def from_panel(panel):
    columns = [(third - panel.keys.start) % 3 for third in range(3)]
    return torch.stack([panel.weights[..., at::3].sum(dim=-1) for at in columns], dim=-1)

def from_dense(dense):
    third = torch.nn.functional.one_hot(torch.arange(dense.weights.shape[3]) % 3, 3)
    return torch.einsum("bhqk,kt->bhqt", dense.weights, third.double())

STATISTIC = Statistic(
    name="thirds", dims=("query", "third"), merge="average", units="share", low=0.0, high=1.0,
    scale="sequential", formula="Σ_{j % 3 = third} P_ij", source="a test",
    doc=__doc__, panel=from_panel, dense=from_dense,
    labels={"third": lambda request, length: range(3)},
)
'''


@pytest.mark.parametrize(("name", "text"), [("square_sum", NEW_STATISTIC), ("thirds", NEW_DIM)])
def test_a_statistic_is_one_new_file(name, text, tmp_path, draw, agree, monkeypatch):
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(statistics, "__path__", [*statistics.__path__, str(tmp_path)])
    assert name in statistics.names()
    inputs = draw(100)
    assert name in inputs.request.stats
    agree(name, attend(*inputs)[name], attend_dense(*inputs)[name])

"""What each architecture can do, found out by trying; the table in the docs is made of this."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import architectures
import edge_pairs
import numpy as np
import pairs
import pytest
import torch
import xarray as xr
from bridges import bridge_if_known
from pairs import close
from refusals import check_refusal
from torch import Tensor

from headscope.analyses._interventions.edge_effects import edge_scores
from headscope.kernels.api import Request
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model
from headscope.probes.attention.forward import Reader, logits
from headscope.probes.attention.interface import follows, intercept_attention
from headscope.probes.interventions import Ablate, FixPattern, Gate, KnockOut
from headscope.probes.models.model import Model

TABLE = Path(__file__).parents[3] / "docs" / "architectures.md"
# Largest difference from eager attention in the same precision; weights of O(1) carry 8 or 11 bits.
HALVES = {"bfloat16": 1e-2, "float16": 2e-3}
COLUMNS = ("capture", *HALVES, "padding", "gradients", "edits", "edges", "TransformerBridge")


def draw(length: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 62, (2, length), generator=torch.Generator().manual_seed(seed))


def prompts(module: Any, length: int) -> Tensor:
    """Draw token ids, or for a model of images the pixels of two of them."""
    if module.main_input_name == "input_ids":
        return draw(length)
    size = module.config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(length))


def entropy(weights: Tensor, sinks: bool) -> Tensor:
    weights = weights.double()
    if sinks:
        rest = (1.0 - weights.sum(-1, keepdim=True)).clamp_min(0.0)
        weights = torch.cat((weights, rest), dim=-1)
    return -torch.xlogy(weights, weights).sum(-1)


def try_capture(model: Model, module: Any) -> str:
    """Compare statistics and output with eager attention at odd lengths."""
    for length in (1, 9, 33):
        ids = prompts(module, length)
        result = capture(model, ids.tolist(), stats=("entropy", "received", "max_weight"))
        own, weights = architectures.eager(module, ids)
        with torch.no_grad():
            close(output_of(model, ids), own)
        for layer, one in by_layer(model, weights):
            at = {"layer": layer}
            sinks = "sink_logit" in result.coords
            close(torch.from_numpy(result["entropy"].isel(at).values), entropy(one, sinks))
            close(torch.from_numpy(result["max_weight"].isel(at).values), one.amax(-1))
        for layer in model.geometry.without:
            assert result["entropy"].isel(layer=layer).isnull().all()
    if not follows(module):
        return "yes, followed (N×N bias)" if holds_maps(model) else "yes, followed"
    absent = ", ".join(map(str, model.geometry.without))
    return f"yes; no attention map in layer {absent}" if absent else "yes"


def holds_maps(model: Model) -> bool:
    """Say whether the model itself makes a bias of all queries and keys."""
    biases: list[Tensor | None] = []
    reader = Reader(Request(stats=()), take=lambda call, outputs, z: biases.append(call.bias))
    with torch.no_grad(), intercept_attention(model, reader):
        model.module(input_ids=draw(9))
    return any(bias is not None and bias.shape[2] > 1 for bias in biases)


def try_half(family: str, dtype: str) -> str:
    """Compare a model in half precision with its own eager attention in the same precision."""
    module = architectures.build(family).requires_grad_(False).to(getattr(torch, dtype))
    exact = architectures.build(family).to(module.dtype).float()
    ids = prompts(module, 33)
    if ids.is_floating_point():  # the same pixels in every precision
        ids = ids.to(module.dtype).float()
    model = load_model(module)
    result = capture(model, ids.tolist(), stats=("entropy", "max_weight", "distance"))
    with torch.no_grad():
        output = output_of(model, ids).double()
    own, weights = architectures.eager(module, ids)
    truth, true_weights = architectures.eager(exact, ids)
    # One step of bfloat16 at the largest value is nearly 1e-2 of it, so norms are compared.
    gaps = {"output": float((output - own).norm() / own.double().norm())}
    # Eager attention rounds scores and weights too, so it may be the one that is off.
    assert (output - truth.double()).norm() < 1.25 * (own - truth.double()).norm(), family
    ours: dict[str, float] = {}
    expected: dict[str, float] = {}
    for (layer, one), (_, true) in zip(
        by_layer(model, weights), by_layer(model, true_weights), strict=True
    ):
        rounded, right = (statistics_of(each.double(), result) for each in (one, true))
        for name, scale in {"entropy": math.log(33), "max_weight": 1.0, "distance": 33}.items():
            value = torch.from_numpy(result[name].isel(layer=layer).values)
            for kept, first, second in (
                (gaps, value, rounded[name]),
                (ours, value, right[name]),
                (expected, rounded[name], right[name]),
            ):
                kept[name] = max(kept.get(name, 0.0), float((first - second).abs().max()) / scale)
    worst = max(gaps, key=lambda name: gaps[name])
    if gaps[worst] <= HALVES[dtype]:
        return "yes"
    # What bfloat16 loses of itself is no fault of either; then only the distance to float32 counts.
    if all(ours[name] < 1.25 * expected[name] for name in ours if gaps[name] > HALVES[dtype]):
        return f"yes: {worst} {gaps[worst]:.1g} from eager, both {ours[worst]:.1g} from float32"
    return f"no: {worst} {gaps[worst]:.1g} away"


def statistics_of(weights: Tensor, capture: xr.Dataset) -> dict[str, Tensor]:
    """Compute from the map what a capture says of each query."""
    at = torch.arange(weights.shape[-1])
    distance = (at[:, None] - at[None, :]).abs().double()
    return {
        "entropy": entropy(weights, "sink_logit" in capture.coords),
        "max_weight": weights.amax(-1),
        "distance": (weights * distance).sum(-1),
    }


def by_layer(model: Model, weights: tuple[Tensor | None, ...]) -> list[tuple[int, Tensor]]:
    """Pair the layers that have a map with the maps that eager attention returns."""
    maps = [weight for weight in weights if weight is not None]
    return list(zip(model.geometry.attending, maps, strict=True))


def try_padding(model: Model, module: Any) -> str:
    """Compare padded prompts with eager attention, at the tokens that are real."""
    if model.reads == "images":
        return "– (images have no padding)"
    ids = draw(21)
    sides = {"left": torch.arange(21) >= 6, "right": torch.arange(21) < 15}
    for side, kept in sides.items():
        mask = torch.ones_like(ids)
        mask[0] = kept.long()
        output, result = pairs.through(model, input_ids=ids, attention_mask=mask)
        own, weights = architectures.eager(module, ids, mask)
        real = mask.bool()
        close(output[real], own[real])
        for layer, one in by_layer(model, weights):
            sinks = hasattr(module.config, "layer_types") and "Oss" in type(module).__name__
            expected = entropy(one, sinks).transpose(1, 2)[real]
            close(result[layer].transpose(1, 2)[real], expected)
            assert result[layer].transpose(1, 2)[~real].isnan().all(), side
    return "left, right"


def output_of(model: Model, ids: Tensor, *edits: Any) -> Tensor:
    with intercept_attention(model, Reader(Request(stats=()), edits)):
        result: Tensor = model.module(**architectures.fed(ids))[0]
    return result


def try_gradients(model: Model, module: Any) -> str:
    """Compare the gradient of a gate with a finite difference."""
    ids = prompts(module, 9)[:1]
    direction = torch.randn(output_of(model, ids).shape, generator=torch.Generator().manual_seed(1))

    def score(values: Tensor) -> Tensor:
        return (output_of(model, ids, Gate(values)).double() * direction).sum()

    gates = torch.ones(model.layers, model.heads, requires_grad=True)
    try:
        (gradient,) = torch.autograd.grad(score(gates), gates)
    except HeadscopeError as refusal:
        return f"no: {str(refusal).partition(':')[0]}"
    step = torch.zeros_like(gates)
    layer = model.geometry.attending[0]
    step[layer, 1] = 1e-2
    with torch.no_grad():
        slope = (score(gates + step) - score(gates - step)) / 2e-2
    torch.testing.assert_close(gradient[layer, 1].double(), slope, rtol=2e-2, atol=1e-3)
    assert gradient[model.geometry.attending].abs().min() > 0
    return "yes"


def try_edits(model: Model, module: Any) -> str:
    """Fix a head to its own pattern, which changes nothing; then knock a key out."""
    ids = prompts(module, 9)[:1]
    with torch.no_grad():
        plain = output_of(model, ids)
        own = capture(model, ids.tolist(), stats=("pattern",))["pattern"].values[0, 1, 2]
        whole = bool(abs(own.sum(-1) - 1.0).max() < 1e-4)
        if whole:  # a learned sink keeps a part, which a pattern of keys cannot say
            fixed = FixPattern(head=(1, 2), values=torch.from_numpy(own.copy()))
            close(output_of(model, ids, fixed), plain)
        gone = output_of(model, ids, KnockOut(heads=((1, 2),), keys=(0,)))
    assert (gone - plain).abs().max() > 1e-4
    return "yes"


def try_edges(model: Model) -> str:
    """Score all edges by gradients, patch none of them, and all of them."""
    task = edge_pairs.pairs(model.vocabulary or 64, count=2)
    try:
        model.check_predicts()
    except HeadscopeError:
        return "–"
    try:
        edges = edge_scores(model, task, "logit_difference", "eap")[0].edges
    except HeadscopeError as refusal:
        return f"refused: {str(refusal).removeprefix('model: ').partition(',')[0]}"
    out = edge_pairs.all_logits(model, task, np.stack([edges & False, edges]))
    for at, ids in enumerate((task.ids, task.corrupted_ids)):
        close(
            out[:, at],
            logits(model, torch.tensor(ids), (), torch.tensor(task.question_positions)).detach(),
        )
    return "yes"


def try_bridge(model: Model, module: Any, words: Any) -> str:
    """Boot a TransformerBridge around the model, and capture through it."""
    ids = prompts(module, 9)
    plain = capture(model, ids.tolist(), stats=("entropy",))["entropy"].values
    bridge = bridge_if_known(module, words)
    if bridge is None:
        return "no: TransformerLens does not know it"
    try:
        result = capture(load_model(bridge), ids.tolist(), stats=("entropy",))["entropy"].values
    except HeadscopeError as refusal:
        return f"refused: {refusal}"
    close(torch.from_numpy(result), torch.from_numpy(plain))
    return "yes"


def trial(family: str, words: Any) -> dict[str, str]:
    """Try everything with one architecture; the cells of its row."""
    module = architectures.build(family).requires_grad_(False)
    if family in architectures.PAIRED:
        even = architectures.build(family, num_decoder_layers=2, decoder_layers=2)
        untried = {**dict.fromkeys(HALVES, "not tried"), "edges": "–"}
        return {**untried, **pairs.trial(module, even, words)}
    try:
        model = load_model(module)
    except HeadscopeError as refusal:
        reason = str(refusal).removeprefix("model: ").partition(",")[0].partition(";")[0]
        return {"capture": f"refused: {reason}", **dict.fromkeys(COLUMNS[1:], "–")}
    return {
        "capture": try_capture(model, module),
        **{dtype: try_half(family, dtype) for dtype in HALVES},
        "padding": try_padding(model, module),
        "gradients": try_gradients(model, module),
        "edits": try_edits(model, module),
        "edges": try_edges(model),
        "TransformerBridge": try_bridge(model, module, words),
    }


HEAD = """# Architectures

Each row is what a tiny model of the architecture, with random weights, did in the tests against
Hugging Face's eager attention in float32: statistics and output within 5e-5 at 1, 9 and 33 tokens;
of models of images, on images of 16 × 16 pixels in patches of 4 × 4. A test compares this file with
what it finds; `pytest tests/probes/attention/test_architectures.py --write` writes it.

- **capture**: through transformers' attention interface; *followed*: outside it, where the model's
  own steps between queries and values are followed and none is computed. Both are fused: no N×N map
  and no N×N mask is made (GPT-Neo keeps one of its own). *N×N bias*: the model itself makes a
  matrix of its relative position bias, so memory grows with the square of the text. Of an
  encoder–decoder model the attentions that can be chosen (`load_model(..., attention=...)`). Else
  why the architecture is refused.
- **bfloat16**, **float16**: against the eager attention of the same model in the same precision, at
  33 tokens: the largest weight as it is, entropy and distance as a share of the largest they can be
  (log 33, 33 tokens), the output by its norm. All within 1e-2 (float16: 2e-3), else the number,
  *yes* where both are equally far from float32 on the same rounded weights (ours less than 1.25
  times as far, as the output is everywhere).
  Encoder–decoder models were tried in float32 only.
- **padding**: sides on which a batch may be padded.
- **gradients**: the gradient of head gates equals finite differences. *no: bias*: the bias itself
  follows from the text, and a gradient through it is refused.
- **edits**: a fixed pattern and a knock-out inside the attention do what they say.
- **edges**: scored and patched (`edge_attribution`): with none patched the logits are the clean
  prompt's, with all the corrupted one's. –: it predicts no next token, or has an encoder.
- **TransformerBridge**: capture through TransformerLens gives the same numbers; else who says no.

"""


def row(family: str, cells: dict[str, str]) -> str:
    return f"| {family} | " + " | ".join(cells[column] for column in COLUMNS) + " |"


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The committed rows; with --write, what the tests find becomes the file."""
    written = TABLE.read_text().splitlines() if TABLE.exists() else []
    rows = {line.split("|")[1].strip(): line for line in written if line.startswith("| ")}
    yield rows
    if request.config.getoption("--write"):
        head = f"| architecture | {' | '.join(COLUMNS)} |"
        lines = [head, "|" + "---|" * (len(COLUMNS) + 1)]
        lines += [rows[family] for family in architectures.CONFIGS]
        TABLE.write_text(HEAD + "\n".join(lines) + "\n")


@pytest.mark.requirement("F5", "F6")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", architectures.CONFIGS)
def test_the_table_states_what_an_architecture_does(family, words, table, request):
    result = row(family, trial(family, words))
    if request.config.getoption("--write"):
        table[family] = result
    assert table.get(family) == result, "run this test with --write"


def test_the_table_has_no_other_rows(table):
    assert set(table) - {"architecture"} == set(architectures.CONFIGS)


@pytest.mark.requirement("F9")
@pytest.mark.filterwarnings("ignore")
def test_an_edit_of_a_layer_without_attention_is_refused():
    model = load_model(architectures.build("lfm2"))
    check_refusal("KnockOut.heads", logits, model, draw(5), (KnockOut(heads=((0, 1),), keys=(0,)),))
    check_refusal("Ablate.heads", logits, model, draw(5), (Ablate(heads=((0, 1),)),))

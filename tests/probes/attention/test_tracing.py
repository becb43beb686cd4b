"""Models outside transformers' attention interface: what is followed, and what is refused."""

import re
import types
from collections.abc import Callable
from typing import Any

import architectures
import numpy as np
import pytest
import torch
import transformers
from bridges import bridge_of, check_hook_z
from largest_tensor import LargestTensor
from refusals import check_message, check_refusal, refusal
from torch import Tensor

from headscope.kernels.api import Request
from headscope.probes import capture, load_model, pattern
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.capturing.generation import generate
from headscope.probes.models.model import Model

FAMILIES = ("gpt_neo", "gptj", "falcon", "mpt", "bloom")
TOLERANCE = 5e-5


def build(family: str, **more: Any) -> Any:
    return architectures.build(family, **more).requires_grad_(False)


def draw(length: int, rows: int = 1) -> Tensor:
    return torch.randint(2, 62, (rows, length), generator=torch.Generator().manual_seed(length))


def calls(model: Model, ids: Tensor) -> list[AttentionCall]:
    result: list[AttentionCall] = []
    reader = Reader(Request(stats=()), take=lambda call, outputs, z: result.append(call))
    with torch.no_grad():
        run(model, ids, reader, head=False)
    return result


def same_as_eager(module: Any, length: int = 33) -> None:
    ids = draw(length, 2)
    result = capture(load_model(module), ids.tolist(), stats=("pattern",))["pattern"]
    _, weights = architectures.eager(module, ids)
    for layer, weight in enumerate(weights):
        np.testing.assert_allclose(result.isel(layer=layer), weight, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "more", [{"new_decoder_architecture": True, "num_kv_heads": 2}, {"multi_query": False}]
)
def test_the_other_layouts_of_falcon(more):
    same_as_eager(build("falcon", **more))


def test_falcon_with_alibi_is_read_as_eager_or_refused():
    """Hugging Face adds ALiBi twice in its eager code, and once in the other."""
    module = build("falcon", alibi=True)
    line = str(refusal(load_model, module))
    assert "sdpa and the eager" in line
    assert "attn_implementation='eager'" in line
    module.config._attn_implementation_internal = "eager"
    same_as_eager(module)


@pytest.mark.parametrize("family", ["bloom", "mpt"])
@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_arrives_as_slopes(family, heads):
    """The closed form of Press et al.: 2^(-8h/n), with every second of 2n where n is no power."""
    name = {"bloom": "n_head", "mpt": "n_heads"}[family]
    size = {"bloom": "hidden_size", "mpt": "d_model"}[family]
    module = build(family, **{name: heads, size: 8 * heads})
    power = 4 if heads == 4 or family == "bloom" else 8
    even = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    if heads == 6 and family == "bloom":
        even = np.concatenate((even, 2.0 ** (-np.arange(1, 5, 2))))
    if heads == 6 and family == "mpt":
        even = np.concatenate((even[1::2], even[::2]))[:6]
    for call in calls(load_model(module), draw(33)):
        assert call.bias is None
        assert call.slopes is not None
        np.testing.assert_allclose(call.slopes, even, rtol=1e-6)
    same_as_eager(module)


@pytest.mark.parametrize("family", ["gptj", "falcon", "mpt", "bloom"])
def test_no_step_makes_a_map_or_a_mask(family):
    length = 2048
    more = {"gptj": {"n_positions": length}, "mpt": {"max_seq_len": length}}
    model = load_model(build(family, **more.get(family, {})))
    with LargestTensor() as largest:
        result = calls(model, draw(length))
    assert len(result) == 2
    assert largest.elements < length**2


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_gives_the_rows_of_a_capture(family):
    model = load_model(build(family))
    stats = ("entropy", "received", "first_mass", "recent_mass")
    written = generate(model, draw(7).tolist(), stats=stats, new_tokens=9, first=3, recent=2)
    ids = written["token_id"].values.tolist()
    whole = capture(model, ids, stats=stats, first=3, recent=2)
    for name in stats:
        np.testing.assert_allclose(written[name], whole[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_recomputes_the_pattern(family):
    model = load_model(build(family))
    result = capture(model, draw(33).tolist(), stats=("pattern",), keep=("q", "k"))
    for layer in range(2):
        selected = result["pattern"].isel(prompt=0, layer=layer, head=3)
        np.testing.assert_allclose(pattern(result, layer, 3), selected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["gpt_neo", "bloom"])
def test_a_file_gives_the_same_for_its_layers(family, tmp_path):
    """Also where the first prompt is too short to show a slope or a window."""
    model = load_model(build(family))
    prompts = [*draw(1).tolist(), *draw(21).tolist(), *draw(1).tolist()]
    here = capture(model, prompts, stats=("lse",), keep=("q", "k"))
    out = tmp_path / "one.safetensors"
    there = capture(model, prompts, stats=("lse",), keep=("q", "k"), out=out)
    for name in ("window", "logit_scale", "causal", "alibi_slope"):
        assert (name in here.coords) == (name in there.coords)
        if name in here.coords:
            np.testing.assert_array_equal(here[name], there[name])


def test_a_bias_that_is_not_alibi_stays_a_bias():
    module = build("mpt")
    drawn = torch.randn(4, 1, 64, generator=torch.Generator().manual_seed(1))
    module.transformer.build_mpt_alibi_tensor = lambda *_, **__: drawn
    model = load_model(module)
    assert all(call.slopes is None and call.bias is not None for call in calls(model, draw(9)))
    same_as_eager(module)
    check_refusal("keep", capture, model, draw(9).tolist(), keep=("q", "k"))


def attention(
    change: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Any, Tensor, Tensor, Tensor, Any], Any]:
    """GPT-J's attention, from scores and values on."""

    def attend(self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Any:
        scores = query @ key.transpose(-1, -2) / self.scale_attn
        return change(scores if mask is None else scores + mask, value), None

    return attend


def gptj(attend: Callable[..., Any]) -> Any:
    """Build a GPT-J whose second layer attends in another way."""
    module = build("gptj")
    part = module.transformer.h[1].attn
    part._attn = types.MethodType(attend, part)
    return module


def soft(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


def in_place(scores: Tensor, value: Tensor) -> Tensor:
    seen_again = scores.view(-1, *scores.shape[2:]).view(scores.shape)
    seen_again *= 2.0
    return soft(scores) @ value


def peeking(scores: Tensor, value: Tensor) -> Tensor:
    return soft(scores * (2.0 if scores.sum() > 0 else 1.0)) @ value


HOLES = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)) > 0.5
ORDER = torch.arange(24).expand(1, 4, 24, 24)
UNKNOWN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "weights scaled": (lambda s, v: (soft(s) * 0.5) @ v, "mul: its weights are changed"),
    "weights shifted": (lambda s, v: (soft(s) + 1e-3) @ v, "add: its weights are changed"),
    "softmax twice": (lambda s, v: soft(soft(s)) @ v, "softmax: its weights are changed"),
    "no softmax": (lambda s, v: s @ v, "matmul: its scores"),
    "softmax over queries": (lambda s, v: torch.softmax(s, dim=-2) @ v, "softmax: over dim -2"),
    "heads that talk": (
        lambda s, v: torch.einsum("hg,bgqk->bhqk", torch.eye(4), soft(s)) @ v,
        "einsum: its weights",
    ),
    "soft cap": (lambda s, v: soft(torch.tanh(s)) @ v, "tanh: its scores"),
    "queries differ in scale": (lambda s, v: soft(s * torch.rand(1, 1, 24, 1)) @ v, "mul: its"),
    "negative scale": (lambda s, v: soft(-2.0 * s) @ v, "mul: its scores are multiplied by -2.0"),
    "in place": (in_place, "mul_: |in place"),
    "numbers": (peeking, "sum: its scores"),
    "a weak mask": (lambda s, v: soft(s.masked_fill(HOLES, -9.0)) @ v, "mask: hidden keys get -9"),
    "holes": (lambda s, v: soft(s.masked_fill(HOLES, -1e9)) @ v, "attention_mask: "),
    "transposed": (lambda s, v: soft(s.transpose(-1, -2)) @ v, "transpose: its scores"),
    "a list": (lambda s, v: torch.cat([soft(s), soft(s)], -1) @ torch.cat([v, v], 2), "cat: "),
    "written into": (lambda s, v: s.__setitem__(0, 0.0) or soft(s) @ v, "__setitem__: its scores"),
    "picked from": (lambda s, v: soft(s.gather(-1, ORDER)) @ v, "gather: its scores"),
    "a softmax of its own": (
        lambda s, v: (s.exp() / s.exp().sum(-1, keepdim=True)) @ v,
        "exp: its scores",
    ),
}


@pytest.mark.parametrize("variant", UNKNOWN)
def test_an_unknown_step_is_refused_by_name(variant):
    change, message = UNKNOWN[variant]
    module = gptj(attention(change))
    start = "^model: GPTJAttention is outside .* cannot be followed at "
    line = str(refusal(load_model, module))
    assert re.search(start, line)
    assert any(one in line for one in message.split("|"))


def test_what_is_known_of_a_changed_module_is_followed():
    """The same wrapper around known steps loads up to the check against eager weights."""
    module = gptj(attention(lambda s, v: soft(s) @ v))
    assert "GPTJAttention returns no weights to check against" in str(refusal(load_model, module))


def test_steps_that_no_trace_follows_are_refused():
    """Without this a layer would pass for one of another kind, such as Mamba's."""

    def attend(self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Any:
        weights = soft(torch.einsum("bhqd,bhkd->bhqk", query, key))
        return torch.einsum("bhqk,bhkd->bhqd", weights, value), None

    check_message(r"layers \[1\] of .* do no attention that can be", load_model, gptj(attend))


def test_attention_taken_twice_is_refused():
    def twice(scores: Tensor, value: Tensor) -> Tensor:
        return soft(scores) @ value + soft(scores) @ value

    check_message(r"layer 1 of .* asks for attention twice", load_model, gptj(attention(twice)))


def test_a_module_that_reports_something_else_is_refused():
    """Every step is known, but with our scores it takes others than with numbers."""
    module = build("gptj")
    part = module.transformer.h[1].attn
    own = part._attn

    def deceive(self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Any:
        z, weights = own(query, key, value, mask)
        if type(weights) is not Tensor:
            z, weights = own(query * 1.5, key, value, mask)
        return z, weights

    def once(self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Any:
        plain = mask is None or type(mask) is Tensor
        return own(query if plain else query * 1.5, key, value, mask)

    part._attn = types.MethodType(once, part)
    check_message(r"differs from its eager attention|of L1H", load_model, module)
    part._attn = types.MethodType(deceive, part)
    check_message("asks for attention twice", load_model, module)


@pytest.mark.parametrize("family", [*FAMILIES, "xglm"])
def test_nothing_is_left_behind(family):
    module = build(family)
    model = load_model(module)
    ids = draw(9)
    with torch.no_grad():
        before = module(ids).logits

        def fail(call: AttentionCall) -> Tensor:
            raise RuntimeError("broken receiver")

        with pytest.raises(RuntimeError, match="broken receiver"), intercept_attention(model, fail):
            module(ids)
        assert not any(part._forward_hooks for part in module.modules())
        assert not any(part._forward_pre_hooks for part in module.modules())
        assert torch.equal(module(ids).logits, before)


def test_a_model_that_would_change_itself_is_refused_as_it_is():
    """BigBird attends to blocks, and turns itself into a full attention at a short text."""
    shape = {name: architectures.SHAPE[name] for name in ("hidden_size", "num_hidden_layers")}
    more = {"num_attention_heads": 4, "vocab_size": 70, "attention_type": "block_sparse"}
    config = transformers.AutoConfig.for_model("big_bird", **shape, **more)
    module = transformers.AutoModelForMaskedLM.from_config(config).eval()
    check_refusal("attention_type", load_model, module)
    assert module.bert.attention_type == "block_sparse"


def test_a_model_without_a_limit_or_a_map_is_refused_in_words():
    shape = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": 64}
    config = transformers.AutoConfig.for_model("xlnet", **shape)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert "no layer of XLNetLMHeadModel asked for attention" in str(refusal(load_model, module))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_hook_z_of_a_bridge_fires_and_its_ablation_equals_ours(family, words):
    check_hook_z(bridge_of(build(family), words), draw(19))

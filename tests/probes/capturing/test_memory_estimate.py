"""The plan of a capture: what it says beside what is measured, and what it refuses."""

import inspect
import os
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from refusals import check_message, check_refusal

from headscope.kernels import statistics
from headscope.kernels.api import Request, memory
from headscope.probes import capture, load_model, plan
from headscope.probes.capturing import memory_measurement
from headscope.probes.models.model import Model

ALL = tuple(sorted(set(statistics.names()) - {"pattern", "z", "learned_sink_mass"}))
DEFINE = """
import sys
import torch
import transformers
from headscope.kernels.api import memory
from headscope.probes import capture, load_model, plan

torch.set_num_threads(1)

def draw(length, seed):
    drawn = torch.randint(2, 200, (length,), generator=torch.Generator().manual_seed(seed))
    return drawn.tolist()

def llama(hidden, layers, heads, context):
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=context, bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()

model = load_model({source})
prompts = [draw({length}, seed) for seed in range({number})]
options = {options}
# Libraries are loaded once, whatever the length.
capture(model, [draw(48, 99)], **{{**options, "out": None}})
planned = plan(model, prompts, **options)
memory.reset_peak()
before = memory.resident()
found = capture(model, prompts, **options)
print(planned.memory, memory.peak() - before)
"""
SHAPES = {
    "many statistics": ('"headscope/bundled"', 512, 32, {"stats": tuple(set(ALL) - {"span_mass"})}),
    "long": ("llama(512, 4, 8, 16384)", 16384, 1, {"out": "OUT"}),
    "wide": (
        "llama(1024, 8, 16, 512)", 256, 64,
        {"stats": ("entropy",), "keep": ("q", "k", "v", "z", "resid")},
    ),
}  # fmt: skip


def measured(source: str, length: int, number: int, options: dict[str, Any]) -> tuple[int, int]:
    """Plan and measure a capture in a process of its own."""
    program = DEFINE.format(source=source, length=length, number=number, options=options)
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", program],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    planned, peak = map(int, done.stdout.split())
    return planned, peak


def agree(planned: int, peak: int) -> None:
    assert 0.75 * peak <= planned <= 1.25 * peak, f"planned {planned / 1e6}, took {peak / 1e6} MB"


@pytest.mark.long
def test_what_is_planned_is_what_it_takes():
    # What the allocator keeps differs from run to run by tens of MB.
    options = {"stats": ("entropy", "received", "topk")}
    runs = [measured('"headscope/bundled"', 256, 24, options) for _ in range(3)]
    agree(runs[0][0], sorted(peak for _, peak in runs)[1])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_planned_is_what_it_takes_at_scale(shape, tmp_path):
    source, length, number, options = SHAPES[shape]
    if "out" in options:
        options = {**options, "out": str(tmp_path / "a.safetensors")}
    agree(*measured(source, length, number, options))


@pytest.fixture(scope="module")
def model(tiny: Any) -> Model:
    return load_model(tiny("llama"))


def test_arrays_are_counted_to_the_byte(model, ids, tmp_path):
    given = [ids(5), ids(40), ids(40, seed=1)]
    options: dict[str, Any] = {"keep": ("q", "resid"), "k": 3, "spans": {"a": [[0], [1], [2]]}}
    result = capture(model, given, ALL, **options)
    planned = plan(model, given, ALL, **options)
    kept = sum(result[name].nbytes for name in ("q", "resid"))
    assert planned.kept == kept
    assert planned.statistics == sum(one.nbytes for one in result.data_vars.values()) - kept
    assert not planned.streamed
    assert planned.disk == 0
    streamed = plan(model, given, ALL, out=tmp_path / "a.safetensors", **options)
    assert streamed.statistics == planned.statistics
    assert streamed.disk > streamed.statistics + streamed.kept
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    assert planned.weights == sum(one.numel() * 4 for one in model.module.parameters())


def test_the_table_has_the_numbers(model, ids):
    lines = str(plan(model, [ids(20)], keep=("z",))).splitlines()
    assert lines[0] == "1 prompts of up to 20 tokens, 2 layers × 4 heads"
    kept = 2 * 4 * 20 * 8 * 4
    row = next(line for line in lines if line.startswith("kept activations"))
    assert f"{kept / 1e6:.3g} MB" in row
    assert "in memory" in row


def test_what_does_not_fit_is_refused_with_the_numbers(model, ids, tmp_path, monkeypatch):
    given = [ids(100, seed=seed) for seed in range(40)]
    stats: dict[str, Any] = {"stats": ("pattern",), "batch_tokens": 100}
    needed = plan(model, given, **stats)
    assert needed.statistics == 40 * 2 * 4 * 100 * 100 * 4
    there = needed.memory - needed.statistics // 2
    monkeypatch.setattr(memory, "available", lambda: there)
    output = r"memory: 12\.8 MB of statistics .* out=FILE"
    check_message(output, capture, model, given, **stats)
    capture(model, given, out=tmp_path / "a.safetensors", **stats)


def test_batches_shrink_until_they_fit(model, ids, tmp_path, monkeypatch):
    given = [ids(100, seed=seed) for seed in range(90)]
    out = tmp_path / "a.safetensors"
    whole = plan(model, given, out=out)
    assert whole.batch_tokens == 8192
    monkeypatch.setattr(memory, "available", lambda: int(whole.memory / 0.8) - 1)
    chosen = plan(model, given, out=out)
    assert chosen.batch_tokens in (4096, 2048)
    assert chosen.memory <= 0.8 * chosen.available
    monkeypatch.setattr(memory, "available", lambda: 1000)
    check_refusal("memory", capture, model, given, out=out)
    assert not list(tmp_path.iterdir())


def test_what_is_taken_up_keeps_its_batches(model, ids, tmp_path, monkeypatch):
    given = [ids(100, seed=seed) for seed in range(90)]
    out = tmp_path / "a.safetensors"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    there = int(plan(model, given, out=out).memory / 0.8) - 1
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: there)
        chosen = plan(model, given, out=out).batch_tokens
        assert chosen < 8192
        with pytest.raises(KeyboardInterrupt):
            capture(model, given, out=out, progress=stop)
    assert capture(model, given, out=out).attrs["batch_tokens"] == chosen
    assert plan(model, given, out=out).batch_tokens == 8192


def test_a_second_capture_of_its_kind_measures_nothing(model, ids, monkeypatch):
    measured: list[tuple[str, ...]] = []
    attend = memory_measurement.attend

    def counting(q: Any, k: Any, v: Any, request: Any) -> Any:
        measured.append(request.stats)
        return attend(q, k, v, request)

    monkeypatch.setattr(memory_measurement, "attend", counting)
    stats: dict[str, Any] = {"stats": ("entropy", "topk"), "k": 7}
    capture(model, [ids(8)], **stats)
    assert measured == [("entropy", "topk")]
    capture(model, [ids(9), ids(30)], **stats)
    assert len(measured) == 1
    capture(model, [ids(8)], **{**stats, "k": 6})
    assert len(measured) == 2, "other parameters take other memory"


def test_the_defaults_of_a_capture_are_those_of_the_kernels():
    named = inspect.signature(capture).parameters
    shared = {field.name: field.default for field in fields(Request)}
    for name in ("first", "offsets", "clip", "recent", "share", "k", "horizon", "last"):
        assert named[name].default == shared[name], name

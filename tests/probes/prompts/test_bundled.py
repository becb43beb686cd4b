"""The bundled model: its files, its corpus, and what it can do on held-out prompts."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from headscope.probes.bundled import folder, train
from headscope.probes.bundled.corpus import FILL, Source, rows, vocabulary
from headscope.probes.bundled.evaluate import Bench
from headscope.probes.bundled.export import export
from headscope.probes.bundled.phases import PHASES
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tasks._words import KINDS

SHIPPED = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder())
    return Bench(model, AutoTokenizer.from_pretrained(folder()), 60)


def test_files_are_there_and_small() -> None:
    assert all((folder() / name).is_file() for name in SHIPPED)
    assert sum(file.stat().st_size for file in folder().iterdir() if file.is_file()) <= 12_000_000


def test_shape_is_the_one_promised(bench: Bench) -> None:
    config = bench.model.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (4, 8)
    assert (config.num_key_value_heads, config.max_position_embeddings) == (4, 1024)
    assert bench.model.dtype == torch.float32
    assert isinstance(bench.model, LlamaForCausalLM)


def test_tokens_are_words_behind_a_bos(bench: Bench) -> None:
    ids = bench.tokenizer("When Mary, in 1732, saw ([")["input_ids"]
    assert bench.tokenizer.convert_ids_to_tokens(ids) == [
        "<bos>", "When", "Mary", ",", "in", "17", "32", ",", "saw", "(", "[",
    ]  # fmt: skip
    assert ids[0] == bench.tokenizer.bos_token_id


def test_every_task_word_is_a_token(bench: Bench) -> None:
    known = bench.tokenizer.get_vocab()
    assert {word for kind in KINDS.values() for word in kind} <= known.keys()
    assert known == vocabulary()
    assert len(known) == bench.model.config.vocab_size


class TestHeldOut:
    @pytest.mark.parametrize("length", [16, 64, 128, 256])
    def test_induction(self, bench: Bench, length: int) -> None:
        assert bench.accuracy("induction", 4, length=length) >= 0.95

    def test_recall_at_512_at_every_depth(self, bench: Bench) -> None:
        found = Bench(bench.model, bench.tokenizer, 25).recall(512, 8)
        assert found["all"] >= 0.95
        assert len(found["by_depth"]) == 5
        assert min(found["by_depth"].values()) >= 0.9

    def test_needle_at_512_at_every_depth(self, bench: Bench) -> None:
        found = Bench(bench.model, bench.tokenizer, 20).needle(512)
        assert found["all"] >= 0.95
        assert min(found["by_depth"].values()) >= 0.8

    @pytest.mark.parametrize("order", ["ABBA", "BABA"])
    def test_indirect_object(self, bench: Bench, order: str) -> None:
        assert bench.indirect_object("ioi", order=order)["above_zero"] >= 0.95

    def test_story(self, bench: Bench) -> None:
        assert bench.indirect_object("story")["above_zero"] >= 0.95

    def test_greater_than(self, bench: Bench) -> None:
        found = bench.greater_than()
        assert found["mean"] >= 0.5
        assert found["lowest"] > 0

    def test_brackets(self, bench: Bench) -> None:
        assert bench.accuracy("brackets", length=12) >= 0.8


def test_card_tells_the_measured_numbers() -> None:
    numbers = json.loads((folder() / "card.json").read_text())
    card = (folder() / "README.md").read_text()
    for path in (
        ("induction", "half_64"),
        ("induction", "half_256"),
        ("recall", "length_512_pairs_8", "all"),
        ("recall", "length_512_pairs_32", "all"),
        ("recall", "length_1000_pairs_8", "all"),
        ("needle", "length_512", "all"),
        ("needle", "length_1000", "all"),
        ("ioi", "ABBA", "above_zero"),
        ("ioi", "BABA", "above_zero"),
        ("story", "above_zero"),
        ("brackets", "length_16"),
    ):
        value = numbers
        for step in path:
            value = value[step]
        assert f"| {'.'.join(path)} | {100 * value:.1f} % |" in card
    assert f"| greater_than.mean | {numbers['greater_than']['mean']:.3f} |" in card


def test_training_forward_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(train.config())
    for length in (96, 256):
        ids = torch.randint(0, len(vocabulary()), (2, length))
        with torch.no_grad():
            ours = train.states(model, ids, *train.rotation(model, length, torch.float32))
            theirs = model.model(ids).last_hidden_state
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("induction", {"length": (4, 60)}),
        ("recall", {"pairs": (2, 60), "bare": True}),
    ],
)
def test_predictable_ids_of_a_row_followed_the_same_id_before(
    task: str, options: dict[str, object]
) -> None:
    ids, weights, kinds = rows((Source(task, 1.0, options),), 8, 96, "rows")
    assert kinds == [task] * 8
    for row, weight in zip(ids, weights, strict=True):
        assert len(row) == len(weight) + 1
        asked = [place for place, value in enumerate(weight) if value]
        assert asked
        for place in asked:
            earlier = set(pairwise(row[: place + 1]))
            assert (row[place], row[place + 1]) in earlier


def test_needle_row_ends_in_its_answer_and_depths_vary() -> None:
    source = Source("needle", 1.0, {"span": 1, "depth": (0.0, 1.0), "length": FILL}, answer=4.0)
    ids, weights, _ = rows((source,), 12, 96, "needle")
    note = vocabulary()["note"]
    for row, weight in zip(ids, weights, strict=True):
        assert [place for place, value in enumerate(weight) if value == 4.0] == [95]
        assert row[96] == row[row.index(note) + 2]
    assert len({row.index(note) for row in ids}) > 6


@pytest.mark.parametrize("number", range(len(PHASES)))
def test_every_phase_draws_rows_that_teach(number: int) -> None:
    step = PHASES[number].until - 1
    ids, weights, kinds = train.draw(step)
    assert ids.shape == (weights.shape[0], weights.shape[1] + 1)
    assert set(kinds) <= {*tasks.names(), "text"}
    assert bool((weights.sum(1) > 0).all())
    again = train.draw(step)
    assert torch.equal(ids, again[0])
    assert int(ids.max()) < len(vocabulary())
    assert bool((ids[:, 0] == 0).all())


def test_rate_warms_up_and_falls() -> None:
    last = PHASES[-1]
    assert train.rate_at(0) == pytest.approx(PHASES[0].rate / 200)
    assert train.rate_at(last.until - 1) < 0.03 * last.rate


def test_checkpoint_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = LlamaForCausalLM(train.config())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    train.save(model, optimizer, 7, tmp_path)
    other = LlamaForCausalLM(train.config())
    resumed = torch.optim.AdamW(other.parameters(), fused=True)
    assert train.resume(other, resumed, tmp_path) == 7
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[ours][moment], resumed.state[theirs][moment])
    out = tmp_path / "shipped"
    out.mkdir()
    export(tmp_path, out)
    shipped = LlamaForCausalLM.from_pretrained(out)
    assert shipped.dtype == torch.float32
    for ours, theirs in zip(model.parameters(), shipped.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)

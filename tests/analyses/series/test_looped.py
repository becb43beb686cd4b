"""A constructed looped transformer: the capture shows its program, loop by loop, and what it does.

The oracle is an interpreter of its programs.
"""

import numpy as np
import pytest
import torch
from looped import ADDRESSES, FETCH, HEADS, LOOPS, MEMORY, execute, looped, programs

from headscope.analyses._runtime import runner
from headscope.probes import capture
from headscope.probes.attention.forward import logits


@pytest.fixture(scope="module")
def machine():
    return looped()


@pytest.fixture(scope="module")
def drawn():
    return programs(40)


@pytest.mark.requirement("E4")
def test_all_loops_share_their_weights_and_the_machine_computes_what_the_programs_define(
    machine, drawn
):
    task, clean, _ = drawn
    first, *rest = machine.module.transformer.h
    for block in rest:
        assert all(a is b for a, b in zip(first.parameters(), block.parameters(), strict=True))
    rows = torch.tensor([machine.encode(prompt.clean) for prompt in task.prompts])
    assert rows.shape == (len(clean), ADDRESSES)
    result = machine.tokenizer.convert_ids_to_tokens(logits(machine, rows)[:, -1].argmax(-1))
    expected = [execute(program).letters[-1] for program in clean]
    assert result == expected
    assert len(set(expected)) > 5
    # One loop more, or less, is one instruction more or less.
    for loops in (1, LOOPS - 1, LOOPS + 2):
        other = looped(loops)
        result = other.tokenizer.convert_ids_to_tokens(logits(other, rows)[:, -1].argmax(-1))
        assert result == [execute(program, loops).letters[-1] for program in clean]


@pytest.mark.requirement("E4")
def test_the_fetching_head_attends_where_the_program_counter_points_in_every_loop(machine, drawn):
    task, clean, other = drawn
    result = capture(machine, task, stats=("topk", "topk_key"), k=1)
    last = result.isel(query=-1, rank=0)
    key = last["topk_key"].transpose("prompt", "layer", "head").values
    weight = last["topk"].transpose("prompt", "layer", "head").values
    trace = np.array([execute(program).fetched for program in clean])
    np.testing.assert_array_equal(key[..., FETCH], trace)
    assert weight[..., FETCH].min() > 0.999
    # Programs are distinguished: most programs do not stay where they are, and jump back and forth.
    steps = np.diff(trace, axis=1)
    assert min((steps == 1).mean(), (steps < 0).mean(), (steps > 1).mean()) > 0.05
    # No other head follows the counter, and no other program's trace fits.
    for head in set(range(HEADS)) - {FETCH}:
        assert (key[..., head] == trace).mean() < 0.3
    wrong = np.array([execute(program).fetched for program in other])
    assert (key[:, 1:, FETCH] == wrong[:, 1:]).mean() < 0.3


@pytest.mark.requirement("E4")
def test_a_head_score_over_loops_finds_the_fetching_head_alone(machine, drawn):
    """``target_mass`` on what the interpreter fetches names loop and head."""
    task, clean, _ = drawn
    runs = [execute(program).fetched for program in clean]
    targets = {
        f"loop {loop}": [[[]] * (ADDRESSES - 1) + [[run[loop]]] for run in runs]
        for loop in range(LOOPS)
    }
    result = capture(machine, task, stats=("target_mass",), targets=targets)["target_mass"]
    mass = result.isel(query=-1).mean("prompt").transpose("target", "layer", "head").values
    for loop in range(LOOPS):
        best = np.unravel_index(mass[loop].argmax(), mass[loop].shape)
        assert best == (loop, FETCH)
        assert mass[loop, loop, FETCH] > 0.999


@pytest.mark.requirement("E4")
def test_resampling_a_loop_does_what_the_other_programs_instruction_would(machine, drawn):
    task, clean, other = drawn
    result = runner.execute("importance", machine, task=task, options={"exhaustive": True})
    lost = result["resample_ablation"].transpose("layer", "head").values
    pairs = list(zip(clean, other, strict=True))
    kept = [
        np.mean([
            execute(one, swapped=loop, other=corrupted).letters[-1] == execute(one).letters[-1]
            for one, corrupted in pairs
        ])
        for loop in range(LOOPS)
    ]  # fmt: skip
    np.testing.assert_allclose(lost[:, FETCH], 1 - np.array(kept), atol=1e-6)
    assert min(lost[:, FETCH]) > 0.1
    others = [head for head in range(HEADS) if head != FETCH]
    np.testing.assert_array_equal(lost[:, others], 0)


def test_a_shifted_memory_runs_another_program(machine, drawn):
    """The control: with its places shifted by one, the trace no longer fits."""
    _, clean, _ = drawn
    shifted = looped()
    places = shifted.module.transformer.wpe.weight
    with torch.no_grad():
        memory = list(MEMORY)
        places[memory] = places[[*memory[1:], memory[0]]].clone()
    text = [" ".join([*program, "run"]) for program in clean]
    last = capture(shifted, text, stats=("topk_key",), k=1).isel(query=-1, rank=0)
    key = last["topk_key"].transpose("prompt", "layer", "head").values[..., FETCH]
    trace = np.array([execute(program).fetched for program in clean])
    assert (key == trace).mean() < 0.2

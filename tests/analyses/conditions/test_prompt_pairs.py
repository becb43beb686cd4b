import random
from dataclasses import replace

import numpy as np
import pytest
from architectures import eager_maps
from constructed import INDUCTION, KEYS, NAMES, VALUES, repeated
from refusals import check_refusal
from word_prompts import Asked, word_prompt

from headscope.analyses import prompt_pairs
from headscope.analyses._runtime.runner import execute
from headscope.probes import capture
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.writing import join_words


@pytest.mark.requirement("B5")
def test_the_difference_is_the_total_variation_of_the_models_own_rows(bundled):
    task = tasks.make("recall", bundled.tokenizer, 2, pairs=3)
    result = execute("prompt_pairs", bundled, task=task, options={"draws": 1})
    encoded = read(bundled, task).encoded
    expected = []
    for row in range(2):
        at = [question.at for question in encoded.questions[row]]
        pair = encoded.ids[row], encoded.corrupted_ids[row]
        first, second = (eager_maps(bundled.module, ids)[:, :, at].numpy() for ids in pair)
        expected.append(np.abs(first - second).sum(-1).mean(-1) / 2)
    np.testing.assert_allclose(result["difference"], np.mean(expected, axis=0), atol=1e-4)


def two_instructions(n: int = 6, other: tuple[str, ...] = ("morning", "evening")) -> Task:
    """One context of facts behind ``note KEY``, or behind other words; the last key is asked."""
    rng, prompts = random.Random(0), []
    for _ in range(n):
        keys, values = rng.sample(KEYS, 3), rng.sample(VALUES[:8], 3)
        context = [word for pair in zip(keys, values, strict=True) for word in pair]
        asked = [Asked(2 + len(context), (values[1],), (values[0],))]
        long = ("note", NAMES[0], *context, keys[1])
        prompt = word_prompt(long, long, asked)
        short, _ = join_words((*other, *context, keys[1]))
        prompts.append(replace(prompt, corrupted=short, changes=()))
    return Task("instructions", tuple(prompts), "accuracy", 0, "Two instructions, one context.")


@pytest.mark.requirement("B5")
@pytest.mark.parametrize("other", [("ask",), ("ask", ".", "Tom", ".")])
def test_instructions_of_different_length_are_compared_over_their_context(random_llama, other):
    """Against eager maps: shared tokens one by one, each instruction as one key."""
    task = two_instructions(2, other)
    result = execute("prompt_pairs", random_llama, task=task, options={"draws": 1})
    encoded, expected = read(random_llama, task).encoded, []
    assert len(encoded.ids[0]) == 10 != len(encoded.twins[0])
    for ids, twin in zip(encoded.ids, encoded.twins, strict=True):
        # <bos>, the instruction, then seven words that both have.
        first, second = (
            eager_maps(random_llama.module, each)[:, :, -1].numpy() for each in (ids, twin)
        )
        moved = np.abs(first[..., -7:] - second[..., -7:]).sum(-1) + np.abs(
            first[..., 0] - second[..., 0]
        )
        moved += np.abs(first[..., 1:-7].sum(-1) - second[..., 1:-7].sum(-1))
        expected.append(moved / 2)
    np.testing.assert_allclose(result["difference"], np.mean(expected, axis=0), atol=1e-5)
    assert "counts as one key" in result.attrs["convention"]
    assert "lost" in result


@pytest.mark.requirement("B5")
def test_an_instruction_that_moves_a_head_is_found_at_another_length(circuit):
    """B's instruction states another value for the asked key: the copier looks there, too."""
    prompts = []
    for prompt in two_instructions(16).prompts:
        key = prompt.clean.split()[-1]
        prompts.append(
            replace(prompt, corrupted=f"note {key} evening {prompt.clean[10:]}", changes=())
        )
    task = replace(two_instructions(16), prompts=tuple(prompts))
    assert task.prompts[0].clean[:10] == "note Mary "
    result = execute("prompt_pairs", circuit, task=task, options={"best": 1})
    assert result.attrs["heads_by_type"]["differ between the prompts"] == ["L1H0"]
    assert result["difference"].values[INDUCTION] == pytest.approx(0.5, abs=0.02)
    lost, others = result["lost"].values
    assert lost > 0.5 > 10 * abs(others)
    assert result.attrs["verdict"] == "supported"


def test_a_question_inside_what_differs_is_refused(circuit):
    task = two_instructions(2)
    cut = [replace(prompt, corrupted=f"{prompt.corrupted} ask") for prompt in task.prompts]
    check_refusal("task", execute, "prompt_pairs", circuit, task=replace(task, prompts=tuple(cut)))


def test_the_planted_head_is_where_the_prompts_differ_and_its_pattern_decides(circuit):
    result = execute("prompt_pairs", circuit, task=repeated(n=16, length=8), options={"best": 1})
    assert result.attrs["heads_by_type"]["differ between the prompts"] == ["L1H0"]
    assert result["difference"].values[INDUCTION] > 0.9
    # Under A it leaves the first token, where it rests under B.
    assert float(result["moved_to"][0]) < -0.8
    assert result["token"].values[0] == "<bos>"
    lost, others = result["lost"].values
    assert lost > 10
    assert abs(others) < 1e-3
    assert result.attrs["verdict"] == "supported"


def test_without_the_repetition_the_copying_heads_of_the_bundled_model_attend_elsewhere(bundled):
    result = execute("prompt_pairs", bundled, n=6, options={"draws": 2, "checked": 4})
    assert set(result.attrs["heads_by_type"]["differ between the prompts"]) <= {
        "L3H0", "L3H1", "L3H4", "L3H5", "L3H7",
    }  # fmt: skip
    assert result["lost"].values[0] > 2.0
    assert abs(result["lost"].values[1]) < 0.1


def test_a_difference_that_changes_no_answer_is_flagged(bundled):
    result = execute("prompt_pairs", bundled, task="recall", n=16, options={"draws": 1})
    assert result["difference"].values.max() > 0.3
    assert abs(result["lost"].values[0]) < 0.01
    assert result.attrs["verdict"] == "disagreement"


def test_equal_prompts_do_not_differ(bundled):
    task = tasks.make("ioi", bundled.tokenizer, 3)
    same = tuple(replace(prompt, corrupted=prompt.clean, changes=()) for prompt in task.prompts)
    given = replace(task, prompts=same)
    result = execute("prompt_pairs", bundled, task=given, options={"draws": 1})
    assert float(result["difference"].max()) == 0.0


def test_a_capture_of_other_prompts_is_refused(circuit):
    cap = capture(circuit, [[0, 5, 6, 7]], stats=("lse",), keep=("q", "k"))
    check_refusal("capture", prompt_pairs.run, cap, circuit, repeated(n=4, length=4))

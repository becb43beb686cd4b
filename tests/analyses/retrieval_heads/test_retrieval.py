import architectures
import numpy as np
import pytest
import torch
from constructed import INDUCTION, SINK, needle, repeated
from refusals import check_refusal

from headscope.analyses import retrieval
from headscope.analyses._runtime.runner import execute
from headscope.analyses.retrieval_heads import _copying, _needle_steps
from headscope.probes import capture
from headscope.probes.interventions import Ablate
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import encode

A, B, C, HAY = 11, 12, 13, 5


def copies(looked: list[int], generated: list[int], ids: list[int], span: tuple[int, ...]):
    steps = np.array(looked)[:, None, None]
    return _copying.copied(steps, np.array(generated), np.array(ids), span)


@pytest.mark.requirement("B1")
def test_a_perfect_copier_scores_one_and_a_sink_zero():
    ids = [HAY, A, B, C, HAY]
    perfect = copies([1, 2, 3], [A, B, C], ids, (1, 2, 3))
    sink = copies([0, 0, 0], [A, B, C], ids, (1, 2, 3))
    for copier, score in ((perfect, 1.0), (sink, 0.0)):
        assert _copying.set_score(copier, np.array([A, B, C]), np.array([A, B, C])) == score
        assert _copying.multiset_score(copier, np.array([A, B, C])) == score


def test_looking_at_the_needle_is_no_copy_unless_the_token_is_generated():
    # Step 1: another token comes out. Step 2: the token stands there too, but outside the needle.
    assert not copies([1, 3], [B, A], [HAY, A, B, A], (1, 2)).any()


@pytest.mark.requirement("B1")
def test_repeated_needle_tokens_separate_the_conventions():
    ids = [HAY, A, B, A, HAY]
    generated, tokens = np.array([A, B, A]), np.array([A, B, A])
    one_word = copies([1, 0, 3], generated.tolist(), ids, (1, 2, 3))
    assert _copying.set_score(one_word, generated, tokens) == 1 / 2
    assert _copying.multiset_score(one_word, tokens) == pytest.approx(2 / 3)
    # Generating the same token over and over is how the released code passes 1.
    generated = np.array([A, A, B, A])
    over = copies([1, 1, 2, 3], generated.tolist(), ids, (1, 2))
    assert _copying.set_score(over[:3], generated[:3], np.array([A, B])) == 1.0
    assert _copying.multiset_score(over[:3], np.array([A, B])) == 1.5


@pytest.fixture(scope="module")
def task():
    return needle(("north", "south", "east"))


@pytest.fixture(scope="module")
def result(circuit, task):
    cap = capture(circuit, task, stats=("lse",))
    return retrieval.run(cap, circuit, task, recall_prompts=4, draws=8)


@pytest.mark.requirement("B1")
def test_greedy_decode_steps_are_those_of_the_models_own_maps(bundled):
    """Both scores against a greedy loop over eager attention that keeps no keys."""
    task = tasks.make("needle", bundled.tokenizer, 3, length=40, span=2)
    options = {"draws": 1, "recall_prompts": 2, "decoding": "greedy", "new_tokens": 9}
    result = execute("retrieval", bundled, task=task, options=options)
    encoded, sets, multisets = encode(task, bundled.tokenizer), [], []
    for whole, asked in zip(encoded.ids, encoded.questions, strict=True):
        ids = list(whole[: asked[0].at + 1])
        needle = {place for question in asked for place in question.evidence}
        assert needle < set(range(len(ids)))
        steps = np.zeros((4, 8))
        copied = [[set() for _ in range(8)] for _ in range(4)]
        for _ in range(9):
            logits, maps = architectures.eager(bundled.module, torch.tensor([ids]))
            token = int(logits[0, -1].argmax())
            for layer, head in np.ndindex(4, 8):
                place = int(maps[layer][0, head, -1].argmax())
                if place in needle and ids[place] == token:
                    steps[layer, head] += 1
                    copied[layer][head].add(token)
            ids.append(token)
        sets.append([[len(each) / 2 for each in row] for row in copied])
        multisets.append(steps / 2)
    np.testing.assert_allclose(result["retrieval_set"], np.mean(sets, 0), atol=1e-9)
    np.testing.assert_allclose(result["retrieval_multiset"], np.mean(multisets, 0), atol=1e-9)
    # The model says the needle twice in nine tokens, which only the released code counts twice.
    assert float(result["retrieval_set"].max()) <= 1 < float(result["retrieval_multiset"].max())
    assert float(result["recalled"]) == 1.0


@pytest.mark.requirement("B1")
def test_the_convention_of_a_retrieval_head_can_be_chosen(bundled):
    task = tasks.make("needle", bundled.tokenizer, 3, length=40, span=2)
    options = {"draws": 1, "recall_prompts": 2, "decoding": "greedy", "threshold": 1.0}
    paper, code = (
        execute("retrieval", bundled, task=task, options={**options, "form": form})
        for form in ("set", "multiset")
    )
    assert paper.attrs["heads_by_type"]["retrieval"] == []
    copiers = code.attrs["heads_by_type"]["retrieval"]
    assert copiers
    assert float(code["retrieval_share"]) == pytest.approx(100 * len(copiers) / 32)


@pytest.mark.requirement("B1")
def test_only_answers_with_enough_of_the_needle_count(bundled):
    """Greedy answers of too few tokens have a ROUGE-1 recall of a third: below the half."""
    task = tasks.make("needle", bundled.tokenizer, 3, length=40, span=3)
    options = {"draws": 1, "recall_prompts": 2, "decoding": "greedy", "new_tokens": 1}
    short = execute("retrieval", bundled, task=task, options=options)
    assert float(short["recalled"]) == pytest.approx(1 / 3)
    assert np.isnan(short["retrieval_set"].values).all()
    some = execute("retrieval", bundled, task=task, options={**options, "least_recalled": 0.3})
    assert float(some["retrieval_set"].max()) == pytest.approx(1 / 3)
    # A word counts as often as the needle has it.
    assert _copying.rouge_1_recall(["a", "a", "b"], ["b", "a", "c"]) == pytest.approx(2 / 3)


@pytest.mark.requirement("B1")
@pytest.mark.parametrize("masking", ["zero", "uniform"])
def test_masking_while_decoding_loses_the_needle(circuit, task, masking):
    """Without the copier the greedy answer has nothing of the needle; without others, all of it."""
    cap = capture(circuit, task, stats=("lse",))
    options = {"decoding": "greedy", "new_tokens": 3, "masking": masking}
    result = retrieval.run(cap, circuit, task, recall_prompts=2, draws=8, **options)
    assert result.attrs["heads_by_type"]["retrieval"] == ["L1H0"]
    intact, without, others = result["needle_accuracy"].values
    assert (intact, without) == (1.0, 0.0)
    # Masked from the asking token on: what the previous-token head wrote of the needle stays.
    assert others == 1.0
    assert "ROUGE-1 recall" in result["needle_accuracy"].attrs["convention"]
    previous = (Ablate(((0, 0),)),)
    for whole, asked in zip(*_encoded(circuit, task), strict=True):
        assert _needle_steps.recall(circuit, whole, asked, 3, previous) == 1.0


def _encoded(model, task):
    encoded = encode(task, model.tokenizer, model.bos)
    return encoded.ids, encoded.questions


@pytest.mark.requirement("B1", "B2")
def test_the_constructed_copier_is_the_only_retrieval_head(result):
    for name in ("retrieval_set", "retrieval_multiset"):
        scores = result[name].values
        assert scores[INDUCTION] == 1.0
        assert scores[SINK] == 0.0
        assert np.count_nonzero(scores) == 1
    assert result.attrs["heads_by_type"] == {"retrieval": ["L1H0"], "recall": ["L1H0"]}
    assert float(result["retrieval_share"]) == 12.5
    assert float(result["recalled"]) == 1.0
    assert result["recall"].values[INDUCTION] > 0.999
    assert np.sort(result["recall"].values.ravel())[-2] < 0.1


@pytest.mark.requirement("B1", "B2")
def test_taking_the_copier_out_breaks_both_tasks(result):
    for name in ("needle", "recall"):
        intact, without, others = result[f"{name}_accuracy"].values
        assert (intact, without) == (1.0, 0.0)
        draws = result.attrs["causal"][name]["heads"]["random other heads ablated"]
        assert np.isclose(others, np.mean([draw != ["L0H0"] for draw in draws]))


@pytest.mark.requirement("B2")
def test_the_recall_heads_of_the_bundled_model_are_the_copying_heads_of_its_card(bundled):
    result = execute("retrieval", bundled, n=2, options={"draws": 3, "recall_prompts": 4})
    assert set(result.attrs["heads_by_type"]["recall"]) >= {"L3H0", "L3H1", "L3H4", "L3H5", "L3H7"}
    intact, without, others = result["recall_accuracy"].values
    assert intact == 1.0
    assert without < 0.1
    assert others > 0.9


def test_needles_that_the_model_does_not_recall_are_not_scored(random_llama, task):
    cap = capture(random_llama, task, stats=("lse",))
    result = retrieval.run(cap, random_llama, task, recall_prompts=2, draws=1)
    assert np.isnan(result["retrieval_set"].values).all()
    assert np.isnan(float(result["retrieval_share"]))
    assert result.attrs["heads_by_type"]["retrieval"] == []
    assert "recalls none of the needles" in result.attrs["note"]
    assert result.attrs["verdict"] == "too_few"


def test_bad_input_is_refused(circuit, task):
    cap = capture(circuit, task, stats=("lse",))
    check_refusal("capture", retrieval.run, cap, circuit, repeated(n=4))

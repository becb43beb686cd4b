from dataclasses import replace

import numpy as np
import pytest
from architectures import eager_maps
from constructed import INDUCTION, repeated
from refusals import check_refusal

from headscope.analyses import prompt_pairs
from headscope.analyses._runtime.runner import execute
from headscope.probes import capture
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read

pytestmark = pytest.mark.requirement("B5")


def test_the_difference_is_the_total_variation_of_the_models_own_rows(bundled):
    task = tasks.make("recall", bundled.tokenizer, 2, pairs=3)
    result = execute("prompt_pairs", bundled, task=task, options={"draws": 1})
    encoded = read(bundled, task).encoded
    expected = []
    for row in range(2):
        at = [each.at for each in encoded.questions[row]]
        pair = encoded.ids[row], encoded.corrupted_ids[row]
        one, other = (eager_maps(bundled.module, ids)[:, :, at].numpy() for ids in pair)
        expected.append(np.abs(one - other).sum(-1).mean(-1) / 2)
    np.testing.assert_allclose(result["difference"], np.mean(expected, axis=0), atol=1e-4)


def test_the_planted_head_is_where_the_prompts_differ_and_its_pattern_decides(circuit):
    result = execute("prompt_pairs", circuit, task=repeated(n=6, length=8), options={"best": 1})
    assert result.attrs["heads_by_type"]["differ between the prompts"] == ["L1H0"]
    assert result["difference"].values[INDUCTION] > 0.9
    # Under A it leaves the first token, where it rests under B.
    assert float(result["moved_to"][0]) < -0.8
    assert result["token"].values[0] == "<bos>"
    lost, others = result["lost"].values
    assert lost > 10
    assert abs(others) < 1e-3
    assert result.attrs["verdict"] == "supported"


def test_without_the_repetition_the_copying_heads_of_the_bundled_model_look_elsewhere(bundled):
    result = execute("prompt_pairs", bundled, n=6, options={"draws": 2, "checked": 4})
    assert set(result.attrs["heads_by_type"]["differ between the prompts"]) <= {
        "L3H0", "L3H1", "L3H4", "L3H5", "L3H7",
    }  # fmt: skip
    assert result["lost"].values[0] > 2.0
    assert abs(result["lost"].values[1]) < 0.1


def test_a_difference_that_changes_no_answer_is_flagged(bundled):
    result = execute("prompt_pairs", bundled, task="recall", n=6, options={"draws": 1})
    assert result["difference"].values.max() > 0.3
    assert abs(result["lost"].values[0]) < 0.01
    assert result.attrs["verdict"] == "disagreement"


def test_equal_prompts_do_not_differ(bundled):
    task = tasks.make("ioi", bundled.tokenizer, 3)
    same = tuple(replace(one, corrupted=one.clean, changes=()) for one in task.prompts)
    given = replace(task, prompts=same)
    result = execute("prompt_pairs", bundled, task=given, options={"draws": 1})
    assert float(result["difference"].max()) == 0.0


def test_a_capture_of_other_prompts_is_refused(circuit):
    cap = capture(circuit, [[0, 5, 6, 7]], stats=("lse",), keep=("q", "k"))
    check_refusal("capture", prompt_pairs.run, cap, circuit, repeated(n=4, length=4))

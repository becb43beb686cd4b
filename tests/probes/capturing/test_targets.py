"""Target keys, against the definition read off the prompt by hand."""

from refusals import check_refusal

from headscope.probes.capturing.targets import find, pack, rules
from headscope.probes.prompts.tokens import EncodedQuestion

#      0  1  2  3  4  5  6
IDS = [9, 5, 6, 5, 5, 6, 9]


def test_duplicates_are_earlier_occurrences():
    assert find("duplicate", IDS) == [[], [], [], [1], [1, 3], [2], [0]]


def test_induction_keys_follow_earlier_occurrences_and_precede_the_query():
    assert find("induction", IDS) == [[], [], [], [2], [2], [3], [1]]


def test_the_latest_occurrences_count():
    assert find("duplicate", [3] * 12)[11] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert find("duplicate", [3] * 12, occurrences=2)[11] == [9, 10]
    assert find("induction", [3] * 12, occurrences=2)[11] == [9, 10]


def test_evidence_stands_at_the_questions():
    asked = [
        EncodedQuestion(at=4, answer_ids=(1,), wrong_ids=(2,), evidence=(2, 1)),
        EncodedQuestion(at=4, answer_ids=(1,), wrong_ids=(2,), evidence=(3, 1)),
    ]
    assert find("evidence", IDS, asked) == [[], [], [], [], [1, 2, 3], [], []]


def test_keys_are_packed_with_minus_one():
    packed = pack([[[[], [0, 1]], [[0], []]]])
    assert packed.tolist() == [[[[-1, -1], [0, 1]], [[0, -1], [-1, -1]]]]


def test_rules_are_known_by_name():
    for rule in rules():
        assert len(find(rule, IDS, [EncodedQuestion(1, (1,), (), (0,))])) == len(IDS)
    check_refusal("targets", find, "next", IDS)

"""Every task against an answer worked out from the text alone."""

import re
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from refusals import check_message
from word_prompts import InWords, in_words

from headscope.probes.prompts import tasks
from headscope.probes.prompts.tasks._words import KINDS
from headscope.probes.prompts.tasks.associative import PARTNERS

N = 40


def drawn(name: str, **options: Any) -> list[InWords]:
    """Prompts of a task, their positions counted in words."""
    return [in_words(prompt) for prompt in tasks.make(name, **options).prompts]


def facts(words: tuple[str, ...]) -> dict[str, str]:
    """Key to value, read from the text by a regular expression."""
    return dict(re.findall(r"note (\w+) (\w+) \.", " ".join(words)))


def innermost_open(text: str) -> str:
    """The last bracket that is left when closed pairs are crossed out again and again."""
    before = ""
    while text != before:
        before, text = text, re.sub(r"\(\)|\[\]|\{\}", "", text)
    return text[-1]


def twice_named(words: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Names said once and names said twice in the last 2 sentences' tail that the task asks."""
    output = [word for word in words if word in KINDS["names"]]
    return {w for w in output if output.count(w) == 1}, {w for w in output if output.count(w) == 2}


@pytest.mark.parametrize("name", tasks.names())
class TestEveryTask:
    def test_seed_decides_everything(self, name):
        first, again = tasks.make(name, n=5, seed=3), tasks.make(name, n=5, seed=3)
        assert first == again
        assert tasks.make(name, n=5, seed=4).prompts != first.prompts

    def test_as_many_prompts_as_asked_and_few_twice(self, name):
        task = tasks.make(name, n=N, seed=1)
        assert len(task) == N
        assert len({prompt.clean for prompt in task.prompts}) > 0.9 * N
        assert task.name == name
        assert task.doc.endswith(".")
        assert (task.register, task.redrawn) == ("plain", 0)

    def test_corrupted_prompt_differs_but_has_the_same_length(self, name):
        for prompt in drawn(name, n=N):
            assert len(prompt.words) == len(prompt.corrupted)
            assert prompt.words != prompt.corrupted

    def test_words_come_from_the_lists(self, name):
        known = {word for kind in KINDS.values() for word in kind}
        for prompt in drawn(name, n=N):
            output = {*prompt.words, *prompt.corrupted}
            for question in prompt.questions:
                output |= {*question.answers, *question.wrong}
            assert output <= known

    def test_every_question_has_an_answer_a_wrong_word_and_evidence(self, name):
        for prompt in drawn(name, n=N):
            for question in prompt.questions:
                assert question.answers
                assert question.wrong
                assert question.evidence
                assert all(place < question.at for place in question.evidence)

    def test_the_word_in_the_text_after_a_question_is_an_answer(self, name):
        for prompt in drawn(name, n=N):
            for question in prompt.questions:
                following = prompt.words[question.at + 1 : question.at + 2]
                assert set(following) <= set(question.answers)

    def test_no_prompts_and_unknown_options_are_refused(self, name):
        check_message(r"^n: 0", tasks.make, name, n=0)
        check_message(r"^colour: not an option of task", tasks.make, name, colour="red")


@pytest.mark.parametrize("distinct", [True, False])
def test_induction_answer_followed_the_same_word_before(distinct):
    for prompt in drawn("induction", n=N, length=12, distinct=distinct):
        assert prompt.words[:12] == prompt.words[12:]
        assert prompt.corrupted[12:] == prompt.words[12:]
        assert [question.at for question in prompt.questions] == list(range(12, 23))
        for question in prompt.questions:
            (place,) = question.evidence
            assert prompt.words[place - 1] == prompt.words[question.at]
            assert prompt.words[place] == question.answers[0]
        if distinct:
            assert len(set(prompt.words)) == 12


@pytest.mark.parametrize("options", [{}, {"length": 90}, {"queries": 2, "length": 64}])
def test_recall_answer_is_the_stated_value(options):
    for prompt in drawn("recall", n=N, pairs=6, **options):
        stated, changed = facts(prompt.words), facts(prompt.corrupted)
        assert stated.keys() == changed.keys()
        assert len(stated) == 6
        assert len(prompt.questions) == options.get("queries", 6)
        assert len(prompt.words) == options.get("length", len(prompt.words))
        for question in prompt.questions:
            key = prompt.words[question.at]
            assert prompt.words[question.at - 1] == "ask"
            assert question.answers == (stated[key],)
            assert question.wrong[0] == changed[key]
            assert prompt.words[question.evidence[0] - 1] == key
            assert prompt.words[question.evidence[0]] == stated[key]


def test_bare_recall_is_keys_and_values_only():
    for prompt in drawn("recall", n=N, pairs=5, bare=True):
        assert len(prompt.words) == 2 * 5 + 2 * 5 - 1
        stated = dict(zip(prompt.words[:10:2], prompt.words[1:10:2], strict=True))
        for question in prompt.questions:
            assert question.answers == (stated[prompt.words[question.at]],)


@pytest.mark.parametrize("span", [1, 3])
def test_needle_occurs_once_and_is_asked_for_at_the_end(span):
    for prompt in drawn("needle", n=N, length=80, span=span):
        assert len(prompt.words) == 80
        start = prompt.words.index("note")
        key, value = prompt.words[start + 1], prompt.words[start + 2 : start + 2 + span]
        assert prompt.words[-span - 1 : len(prompt.words) - span + 1] == ("ask", key)
        assert tuple(question.answers[0] for question in prompt.questions) == value
        hay = prompt.words[:start] + prompt.words[start + 3 + span : -span - 1]
        assert not {key, *value, "note", "ask"} & set(hay)
        changed = prompt.corrupted[start + 2 : start + 2 + span]
        assert tuple(question.wrong[0] for question in prompt.questions) == changed
        assert not set(value) & set(changed)


def test_needle_depth_moves_the_fact():
    for depth, expected in ((0.0, 0), (0.5, 47), (1.0, 94)):
        prompt = drawn("needle", n=1, length=100, depth=depth)[0]
        assert prompt.words.index("note") == expected
    spread = [p.words.index("note") for p in drawn("needle", n=5, length=100)]
    assert spread == [0, 24, 47, 70, 94]


def last_sentences(prompt: InWords) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The part of clean and corrupted text from the first asked name on."""
    start = min(prompt.roles["IO"][0], prompt.roles["S1"][0])
    return prompt.words[start:], prompt.corrupted[start:]


@pytest.mark.parametrize("name", ["ioi", "story"])
def test_indirect_object_is_the_name_that_occurs_once(name):
    for prompt in drawn(name, n=N):
        clean, corrupted = last_sentences(prompt)
        once, twice = twice_named(clean)
        (question,) = prompt.questions
        assert (set(question.answers), set(question.wrong)) == (once, twice)
        assert question.at == len(prompt.words) - 1
        assert prompt.words[-1] == "to"
        assert len(twice_named(corrupted)[0]) == 3
        assert prompt.words[prompt.roles["S2"][0]] == prompt.words[prompt.roles["S1"][0]]


def test_indirect_object_orders_and_swap():
    for order, first in (("ABBA", "IO"), ("BABA", "S1")):
        for prompt in drawn("ioi", n=N, order=order, corruption="swap"):
            named = [at for at, word in enumerate(prompt.words) if word in KINDS["names"]]
            assert named[0] == prompt.roles[first][0]
            (asked,) = prompt.questions
            assert twice_named(prompt.corrupted) == (set(asked.wrong), set(asked.answers))
    both = [p.roles["IO"] < p.roles["S1"] for p in drawn("ioi", n=200)]
    assert 0.35 < sum(both) / len(both) < 0.65
    # No rule of turns that a model could count.
    assert 0.35 < sum(a == b for a, b in pairwise(both)) / 199 < 0.65


def test_greater_than_splits_the_century_at_the_start_year():
    for prompt in drawn("greater_than", n=N):
        result = re.search(r"year (\d\d) (\d\d) to the year (\d\d)$", " ".join(prompt.words))
        assert result is not None
        assert result[1] == result[3]
        (question,) = prompt.questions
        assert all(int(word) > int(result[2]) for word in question.answers)
        assert all(int(word) <= int(result[2]) for word in question.wrong)
        assert len(question.answers) + len(question.wrong) == 100
        assert prompt.corrupted[7] == "01"


@pytest.mark.parametrize(("length", "depth"), [(1, 1), (7, 1), (8, 2), (9, 4), (20, 5)])
def test_brackets_answer_closes_the_innermost_open(length, depth):
    closes = {"(": ")", "[": "]", "{": "}"}
    for prompt in drawn("brackets", n=N, length=length, depth=depth):
        (question,) = prompt.questions
        assert len(prompt.words) == length + 1
        assert prompt.words[-1] == "close"
        right = closes[innermost_open("".join(prompt.words[:-1]))]
        assert question.answers == (right,)
        assert set(question.wrong) == set(closes.values()) - {right}
        assert question.wrong[0] == closes[innermost_open("".join(prompt.corrupted[:-1]))]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("induction", {"length": 1}, "length: 1"),
        ("induction", {"length": 5000}, "words: .* the task needs 5001"),
        ("recall", {"pairs": 1}, "pairs: 1"),
        ("recall", {"pairs": 4, "queries": 5}, "queries: 5 questions about 4 facts"),
        ("recall", {"pairs": 4, "length": 20}, "length: 20 words do not hold the facts"),
        ("recall", {"pairs": 500}, "words: "),
        ("needle", {"depth": 1.5}, "depth: 1.5"),
        ("needle", {"length": 5}, "length: 5 words do not hold the fact; use 6"),
        ("needle", {"span": 0}, "span: 0"),
        ("ioi", {"order": "AB"}, "order: 'AB'"),
        ("ioi", {"corruption": "noise"}, "corruption: 'noise'"),
        ("greater_than", {"low": 1}, "low, high: 1 to 97"),
        ("brackets", {"depth": 0}, "length, depth: 16, 0"),
        ("brackets", {"depth": 1, "length": 4}, "length: 4 brackets at depth 1"),
        ("story", {"lines": 0}, "lines: 0"),
        ("associative", {"pairs": 1}, "pairs: 1"),
        ("associative", {"pairs": 26}, "pairs: 25"),
        ("associative", {"length": 17}, "length: 17"),
        ("thread", {"hops": 0}, "hops: 0"),
        ("thread", {"threads": 1}, "threads: 1"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    check_message(f"^{message}", tasks.make, name, n=2, **options)


def test_shortest_needle_and_recall_fit_exactly():
    (needle,) = drawn("needle", n=1, length=6)
    assert needle.words[0] == "note"
    (recall,) = drawn("recall", n=1, pairs=2, length=14)
    assert len(recall.words) == 14


def test_associative_question_has_one_partner_among_the_keys():
    partner = {first: second for pair in PARTNERS for first, second in (pair, pair[::-1])}
    for literal in (False, True):
        for prompt in drawn("associative", n=N, pairs=3, length=40, literal=literal):
            stated = facts(prompt.words)
            asked = prompt.words[-1]
            assert len(prompt.words) == 40
            assert len(stated) == 3
            assert (asked in stated) == literal
            key = asked if literal else partner[asked]
            (question,) = prompt.questions
            assert question.answers == (stated[key],)
            assert prompt.words[question.evidence[0]] == stated[key]
            assert set(question.wrong) >= set(stated.values()) - {stated[key]}
            # The partner of no other key is said, so nothing else could be meant.
            assert not {partner[first] for first in stated} - {asked} & set(prompt.words)
            assert facts(prompt.corrupted)[key] in question.wrong


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_thread_answer_is_reached_by_following_the_facts(hops):
    for prompt in drawn("thread", n=N, hops=hops, threads=3, length=60):
        stated = facts(prompt.words)
        assert len(prompt.words) == 60
        walk = [prompt.words[-1]]
        while walk[-1] in stated:
            walk.append(stated[walk[-1]])
        assert len(walk) == hops + 1
        (question,) = prompt.questions
        assert question.answers == (walk[-1],)
        assert prompt.words[question.evidence[0]] == walk[-1]
        assert [prompt.words[at] for at in prompt.roles["thread"]] == walk[1:]
        assert set(question.wrong) >= {stated[one] for one in stated} - {*stated, walk[-1]}


def test_spelled_thread_asks_every_step():
    for prompt in drawn("thread", n=N, hops=3, spelled=True):
        stated = facts(prompt.words)
        assert len(prompt.questions) == 3
        for question in prompt.questions:
            assert question.answers == (stated[prompt.words[question.at]],)
            assert prompt.words[question.evidence[0]] == question.answers[0]


def test_unknown_task_is_refused():
    output = "^task: 'sorting' is unknown; choose one of associative, brackets,"
    check_message(output, tasks.make, "sorting")


def test_listing_names_imports_no_task():
    code = (
        "import sys; from headscope.probes import tasks; print(*tasks.names());"
        "print([m for m in sys.modules if m.startswith('headscope.probes.prompts.tasks.')"
        " and not m.rpartition('.')[2].startswith('_')])"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    known = {"induction", "recall", "needle", "ioi", "greater_than", "brackets"}
    assert known <= set(out[0].split())
    assert out[1] == "[]"


@pytest.mark.parametrize("corruption", ["random", "documented"])
def test_docstring_asks_for_the_argument_behind_the_last_described(corruption):
    for prompt in drawn("docstring", n=N, corruption=corruption):
        (question,) = prompt.questions
        defined = [prompt.words[place] for place in prompt.roles["defined"]]
        described = [prompt.words[place] for place in prompt.roles["described"]]
        assert described == defined[2:4]
        assert question.answers == (defined[4],)
        assert sorted((*question.answers, *question.wrong)) == sorted(defined)
        others = [prompt.corrupted[place] for place in prompt.roles["described"]]
        known = [prompt.corrupted[place] for place in prompt.roles["defined"]]
        assert not {*others} & {*known}
        assert (known == defined) == (corruption == "documented")
        assert prompt.words[question.at] == "note"


def test_ioi_can_change_all_names_as_in_the_paper():
    for prompt in drawn("ioi", n=N, corruption="names"):
        changed = [
            place
            for place, (word, other) in enumerate(zip(prompt.words, prompt.corrupted, strict=True))
            if word != other
        ]
        assert changed == sorted(prompt.roles["IO"] + prompt.roles["S1"] + prompt.roles["S2"])
        assert len({prompt.corrupted[place] for place in changed}) == 3

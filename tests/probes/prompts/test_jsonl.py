"""Prompts of the user's own: what a line means, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import check_message, refusal

from headscope.app.prompt_files import read_prompts
from headscope.probes.prompts import tasks

LINE: dict[str, Any] = {
    "clean": "When Mary and John met, John gave a book to",
    "corrupted": "When Mary and John met, Anna gave a book to",
    "answers": ["Mary"],
    "wrong": ["John"],
}


def write(path: Path, *lines: Any) -> Path:
    file = path / "mine.jsonl"
    file.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines),
        encoding="utf-8",
    )
    return file


@pytest.mark.parametrize("name", ["mine.JSONL", "mine.ndjson"])
def test_endings_and_a_byte_order_mark_are_those_of_prompt_files(name, tmp_path):
    file = tmp_path / name
    file.write_text(json.dumps(LINE) + "\r\n", encoding="utf-8-sig")
    assert tasks.make(file).prompts == read_prompts(file).prompts
    assert tasks.make(file).prompts[0].clean == LINE["clean"]


def test_a_line_is_a_prompt(tmp_path):
    task = tasks.make(write(tmp_path, LINE, "", {**LINE, "at": 3, "evidence": [1]}))
    assert task.name == "mine"
    assert task.metric == "logit_difference"
    assert len(task) == 2
    first, second = task.prompts
    assert first.clean == LINE["clean"]
    assert first.corrupted == LINE["corrupted"]
    assert [first.part(before) for before, _ in first.changes] == ["John"]
    assert first.questions[0].at == len(LINE["clean"])
    assert first.questions[0].answers == (" Mary",)
    assert second.clean[: second.questions[0].at] == "When Mary and John"
    assert [second.part(span) for span in second.questions[0].evidence] == ["Mary"]


def test_words_may_be_a_list_and_answers_one_word(tmp_path):
    line = {"clean": ["a", "b."], "corrupted": ["a", "c"], "answers": "d", "wrong": "e"}
    task = tasks.make(write(tmp_path, line), metric="accuracy")
    assert task.prompts[0].clean == "a b."
    assert task.prompts[0].questions[0].answers == (" d",)
    assert task.metric == "accuracy"


@pytest.mark.parametrize(
    "text",
    ["Q: the dog?\nA:", '"the dog', "line\u2028the dog", "the dog's  two  spaces\t", "狗是dog"],
)
def test_texts_are_kept_as_they_stand(tmp_path, text):
    line = {**LINE, "clean": text, "corrupted": text.replace("dog", "cat")}
    (prompt,) = tasks.make(write(tmp_path, json.dumps(line, ensure_ascii=False))).prompts
    assert prompt.clean == text
    assert prompt.corrupted == text.replace("dog", "cat")


@pytest.mark.parametrize(
    ("before", "answer", "kept"),
    [
        ("the dog is", "small", " small"),
        ("the dog is", " small", " small"),
        ("the dog is", "\nsmall", "\nsmall"),
        ("the dog", "?", "?"),
        ("the year 17", "32", "32"),
        ("the year", "1732", " 1732"),
        ("A:\n", "yes", "yes"),
        ("法国的首都是", "巴黎", "巴黎"),
    ],
)
def test_answers_get_the_space_that_belongs_before_them(tmp_path, before, answer, kept):
    line = {"clean": before, "corrupted": before, "answers": answer, "wrong": []}
    (prompt,) = tasks.make(write(tmp_path, line)).prompts
    assert prompt.questions[0].answers == (kept,)
    (prompt,) = tasks.make(write(tmp_path, {**line, "exact": True})).prompts
    assert prompt.questions[0].answers == (answer,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({k: v for k, v in LINE.items() if k != "wrong"}, "wrong: missing"),
        ({**LINE, "weight": 2}, "weight: unknown"),
        ({**LINE, "clean": ""}, "clean: the prompt is empty"),
        ({**LINE, "clean": 5}, "clean: give a text"),
        ({**LINE, "answers": []}, "answers: a question needs"),
        ({**LINE, "answers": [3]}, "answers: give a text"),
        ({**LINE, "wrong": ["Mary"]}, "wrong: ' Mary' is also an answer"),
        ({**LINE, "at": 11}, "at: position 11 is outside"),
        ({**LINE, "at": "last"}, "at: give one word position"),
        ({**LINE, "evidence": 3}, "evidence: give a list"),
        ({**LINE, "exact": 1}, "exact: give true"),
    ],
)
def test_malformed_line_is_refused_by_file_and_line(tmp_path, line, message):
    file = write(tmp_path, LINE, line)
    assert str(refusal(tasks.make, file)).startswith(f"{file}:2: {message}")


def test_missing_and_empty_files_are_refused(tmp_path):
    check_message(r"none\.jsonl: no such file", tasks.make, tmp_path / "none.jsonl")
    check_message(r"mine\.jsonl: no prompts", tasks.make, write(tmp_path, "", ""))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    check_message(r"bytes\.jsonl: cannot be read as UTF-8", tasks.make, tmp_path / "bytes.jsonl")


def test_unknown_metric_is_refused(tmp_path):
    check_message(r"^metric: 'loss' is unknown", tasks.make, write(tmp_path, LINE), metric="loss")

"""Prompt files are read by their ending, or refused in one line."""

import json

import pytest
from refusals import refusal

from headscope.app.prompt_files import read_prompts
from headscope.probes.models.pair import Pair

CHAT = [{"role": "user", "content": "the dog"}]
READ = {
    "a.txt": ("\ufeffthe dog\r\nthe\x0ccat\u2028bird\n", ["the dog", "the\x0ccat\u2028bird"]),
    "a.JSONL": (
        '{"text": "the dog\u2028cat"}\n\n{"prompt": "b"}\n"c"',
        ["the dog\u2028cat", "b", "c"],
    ),
    "a.ndjson": (json.dumps({"messages": CHAT}) + '\n{"input_ids": [1, 2]}', [CHAT, [1, 2]]),
    "a.json": ('[{"text": "the dog"}, "b"]', ["the dog", "b"]),
    "a.csv": ('prompt,label\n"the\ndog, a",1\n', ["the\ndog, a"]),
    "a.TSV": ("label\ttext\n1\tthe dog\n", ["the dog"]),
    "b.jsonl": ('{"source": "a", "target": "b"}', [Pair("a", "b")]),
}
REFUSED = {
    "a.txt": ("the dog\n\nthe cat\n", ":2 is empty"),
    "b.txt": ("", "is empty"),
    "a.json": ('{"text": "the dog"}', "holds no list"),
    "b.json": ('[{"text": "the dog"},', "not JSON"),
    "a.csv": ("question,label\na,1\n", "question, label"),
    "a.jsonl": ('{"txt": "the dog"}', ":1 has none of them"),
    "b.jsonl": ('{"text": 5}', "text is a int"),
    "c.jsonl": ('{"text": "a", "input_ids": [1]}', "text and input_ids"),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_by_its_ending(name, tmp_path):
    content, expected = READ[name]
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_another_kind_is_refused_in_one_line(name, tmp_path):
    content, output = REFUSED[name]
    (tmp_path / name).write_bytes(content.encode())
    assert output in str(refusal(read_prompts, tmp_path / name))

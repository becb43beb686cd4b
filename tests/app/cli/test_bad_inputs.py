"""Bad input: one clear line, exit code 2, nothing half-written."""

import json
import os

import pytest


def refused(outcome, *words: str) -> None:
    line = outcome.refusal()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("model", ["no/such-model", "gpt2"], ids=["nowhere", "only on a hub"])
def test_missing_model(model, headscope, tmp_path):
    refused(headscope("capture", model, "--task", "ioi", "--out", tmp_path / "run"), model)
    assert not (tmp_path / "run").exists()


GOOD = json.dumps({"clean": "<bos>", "corrupted": "<bos>", "answers": ["a"], "wrong": ["b"]})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("prompts.jsonl", f"{GOOD}\n{{not json\n", ("prompts.jsonl", "2")),
        ("prompts.txt", "WORDS\n\nWORDS\n", ("empty", "2")),
        ("prompts.txt", "WORDS " * 2000, ("context",)),
        ("prompts.txt", "WORDS\nWORDS zebra\n", ("'zebra'", "prompt 2")),
    ],
    ids=["malformed", "empty", "longer than the context", "unknown to the tokenizer"],
)
def test_prompts(name, text, words, headscope, tmp_path, first_words):
    prompts = tmp_path / name
    prompts.write_text(text.replace("WORDS", first_words))
    options = ("--prompts", prompts, "--out", tmp_path / "run")
    refused(headscope("capture", "headscope/bundled", *options), *words)
    assert not (tmp_path / "run").exists()


def test_output_folder_that_cannot_be_written(headscope, tmp_path):
    # A file where a folder must be refuses every user, root included.
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    refused(headscope("capture", "headscope/bundled", "--task", "ioi", "--out", out), "file")
    assert os.listdir(tmp_path) == ["file"]


def test_unknown_task_and_unknown_analysis(headscope, demo_run, tmp_path):
    wrong = ("--task", "no-such-task", "--out", tmp_path / "run")
    refused(headscope("capture", "headscope/bundled", *wrong), "no-such-task", "ioi")
    refused(headscope("analyze", demo_run, "no-such-analysis"), "no-such-analysis", "sinks")
    outcome = headscope("analyze", demo_run, "sinks", "--set", "sinks.no=1")
    refused(outcome, "sinks", "no", "epsilon")
    refused(headscope("analyze", tmp_path / "nowhere"), "nowhere")


def test_run_that_exists_is_not_replaced_unasked(headscope, demo_run):
    before = (demo_run / "manifest.json").read_bytes()
    given = ("--task", "ioi", "--number", 2, "--out", demo_run)
    refused(headscope("capture", "headscope/bundled", *given), "--overwrite")
    assert (demo_run / "manifest.json").read_bytes() == before


def test_neither_task_nor_prompts(headscope, tmp_path):
    given = ("capture", "headscope/bundled", "--out", tmp_path / "run")
    refused(headscope(*given), "--task", "--prompts")


def test_option_value_out_of_range(headscope, demo_run):
    outcome = headscope("analyze", demo_run, "sinks", "--set", "sinks.epsilon=2")
    assert outcome.refusal() == "error: epsilon: 2.0 is outside 0 … 1"

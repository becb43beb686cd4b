"""Bad input: one clear line, exit code 2, nothing half-written."""

import json
import os
from pathlib import Path


def refused(outcome, *words: str) -> None:
    code, _, lines = outcome
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_missing_model(headscope, tmp_path: Path) -> None:
    outcome = headscope(
        "capture", tmp_path / "no-such-model", "--task", "ioi", "--out", tmp_path / "run"
    )
    refused(outcome, "no-such-model")
    assert not (tmp_path / "run").exists()


def test_model_that_only_a_hub_has(headscope, tmp_path: Path) -> None:
    refused(headscope("capture", "gpt2", "--task", "ioi", "--out", tmp_path / "run"), "gpt2")
    assert not (tmp_path / "run").exists()


def test_malformed_jsonl_line(headscope, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    good = json.dumps({"clean": "<bos>", "corrupted": "<bos>", "answers": ["a"], "wrong": ["b"]})
    prompts.write_text(f"{good}\n{{not json\n")
    outcome = headscope(
        "capture", "headscope/bundled", "--prompts", prompts, "--out", tmp_path / "run"
    )
    refused(outcome, "prompts.jsonl", "2")
    assert not (tmp_path / "run").exists()


def test_empty_prompt(headscope, tmp_path: Path, first_words: str) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{first_words}\n\n{first_words}\n")
    outcome = headscope(
        "capture", "headscope/bundled", "--prompts", prompts, "--out", tmp_path / "run"
    )
    refused(outcome, "empty", "2")
    assert not (tmp_path / "run").exists()


def test_prompt_longer_than_the_context(headscope, tmp_path: Path, first_words: str) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(" ".join([first_words] * 2000))
    outcome = headscope(
        "capture", "headscope/bundled", "--prompts", prompts, "--out", tmp_path / "run"
    )
    refused(outcome, "context")
    assert not (tmp_path / "run").exists()


def test_output_folder_that_cannot_be_written(headscope, tmp_path: Path) -> None:
    # A file where a folder must be refuses every user, root included.
    (tmp_path / "file").write_text("")
    outcome = headscope(
        "capture", "headscope/bundled", "--task", "ioi", "--out", tmp_path / "file" / "run"
    )
    refused(outcome, "file")
    assert os.listdir(tmp_path) == ["file"]


def test_unknown_task_and_unknown_analysis(headscope, demo_run: Path, tmp_path: Path) -> None:
    outcome = headscope(
        "capture", "headscope/bundled", "--task", "no-such-task", "--out", tmp_path / "run"
    )
    refused(outcome, "no-such-task", "ioi")
    refused(headscope("analyze", demo_run, "no-such-analysis"), "no-such-analysis", "sinks")
    outcome = headscope("analyze", demo_run, "sinks", "--set", "sinks.no=1")
    refused(outcome, "sinks", "no", "epsilon")
    refused(headscope("analyze", tmp_path / "nowhere"), "nowhere")


def test_run_that_exists_is_not_replaced_unasked(headscope, demo_run: Path) -> None:
    before = (demo_run / "manifest.json").read_bytes()
    outcome = headscope(
        "capture", "headscope/bundled", "--task", "ioi", "--number", 2, "--out", demo_run
    )
    refused(outcome, "--overwrite")
    assert (demo_run / "manifest.json").read_bytes() == before


def test_neither_task_nor_prompts(headscope, tmp_path: Path) -> None:
    outcome = headscope("capture", "headscope/bundled", "--out", tmp_path / "run")
    refused(outcome, "--task", "--prompts")


def test_option_value_out_of_range(headscope, demo_run: Path) -> None:
    code, _, lines = headscope("analyze", demo_run, "sinks", "--set", "sinks.epsilon=2")
    assert code == 2
    assert lines == ["error: epsilon: 2.0 is outside 0 … 1"]


def test_words_that_the_tokenizer_does_not_know(headscope, tmp_path: Path, first_words) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{first_words}\n{first_words} zebra\n")
    outcome = headscope(
        "capture", "headscope/bundled", "--prompts", prompts, "--out", tmp_path / "run"
    )
    refused(outcome, "'zebra'", "prompt 2")
    assert not (tmp_path / "run").exists()

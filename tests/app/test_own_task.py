"""A run of the user's own prompts with answers: analyses ask them, and not prompts of their own."""

import json

import pytest
import torch

from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes.prompts import tasks
from headscope.probes.storage import run_folder, task_file

NAMES = (("Mary", "Peter"), ("Paul", "Ruth"), ("Adam", "Sarah"))
TEXT = "When {} and {} went to the park , {} gave a lamp to"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    lines = [
        {"clean": TEXT.format(*pair, pair[1]), "corrupted": TEXT.format(*pair, "Anna"),
         "answers": pair[0], "wrong": pair[1]}
        for pair in NAMES
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("own") / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def run(file):
    return capture_run(file.with_name("run"), "headscope/bundled", prompts=file)


def difference(model, right, wrong, text):
    """Return the logit difference by the model alone."""
    right, wrong = (model.tokenizer.convert_tokens_to_ids(name) for name in (right, wrong))
    with torch.no_grad():
        logits = model.module(torch.tensor([model.encode(text)])).logits[0, -1]
    return float(logits[right] - logits[wrong])


def test_patching_asks_the_prompts_of_the_run(run, bundled):
    stated = []
    outcome = analyze_run(run, ("patching", "head_types"), number=4, announce=stated.extend)
    assert "over 3 prompts of mine (" in str(stated[0])
    assert "over 4 prompts of induction (" in str(stated[1])
    patched = outcome["patching"]
    assert (patched.attrs["task"], patched.attrs["n_prompts"]) == ("mine", 3)
    for side, third in (("clean", None), ("corrupted", "Anna")):
        own = [difference(bundled, *pair, TEXT.format(*pair, third or pair[1])) for pair in NAMES]
        assert float(patched[side]) == pytest.approx(sum(own) / len(own), abs=1e-4)
    assert outcome["head_types"].attrs["task"] == "induction"


def test_another_task_can_be_named(run):
    outcome = analyze_run(run, ("logit_attribution",), task="ioi", number=2)
    assert outcome["logit_attribution"].attrs["task"] == "ioi"


def test_the_task_is_kept_as_it_was_and_goes_with_its_run(run, file, tmp_path):
    assert run.own_task() == tasks.make(file)
    built_in = tasks.make("induction", vocab_size=50, n=2)
    task_file.save(built_in, tmp_path / "task.json")
    assert task_file.load(tmp_path / "task.json") == built_in
    folder = tmp_path / "run"
    capture_run(folder, "headscope/bundled", prompts=file)
    again = capture_run(folder, "headscope/bundled", task="ioi", number=2, overwrite=True)
    assert again.own_task() is None
    assert not (folder / run_folder.TASK).exists()

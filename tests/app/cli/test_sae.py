"""``headscope sae train`` writes what ``headscope analyze --sae`` reads."""

import json

import pytest
import torch

from headscope.analyses._sparse_autoencoders import saelens
from headscope.app.pipeline import capture_run
from headscope.probes import load_model, tasks
from headscope.probes.storage import run_folder

MODEL = "headscope/bundled"
SMALL = ("--features", 32, "--k", 3, "--steps", 12, "--context", 32)


@pytest.fixture
def texts(tmp_path):
    model = load_model(MODEL)
    story = tasks.make("story", model.tokenizer, 12, 3)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": prompt.clean}) + "\n" for prompt in story.prompts))
    return path


def test_an_autoencoder_is_trained_and_measured_on_a_run(texts, tmp_path, headscope):
    out = tmp_path / "sae"
    given = ("sae", "train", MODEL, "--layer", 1, "--prompts", texts, "--out", out, *SMALL)
    assert "12 steps" in headscope(*given, "--dry-run").printed()
    assert not out.exists()
    ended = headscope(*given, "--kind", "batchtopk")
    assert f"{out} holds it" in ended.printed()
    assert "tokens through layers 0 to 1" in ended.err[0]
    trained = saelens.load(out)
    assert (trained.kind, trained.site.layer, trained.features) == ("jumprelu", 1, 32)
    assert trained.about["training"]["kind"] == "batchtopk"
    assert "give --overwrite" in headscope(*given).refusal()
    headscope(*given, "--overwrite", "--head", 2).printed()
    assert saelens.load(out).site.head == 2

    run = capture_run(tmp_path / "run", MODEL, task="story", number=4)
    small = ("--set", "sae_features.shown=1", "--set", "sae_features.causal_prompts=2")
    headscope("analyze", run.path, "sae_features", "--sae", out, *small).printed()
    about = run_folder.open(run.path).results()["sae_features"].attrs["sae"]
    assert (about["head"], about["features"], about["trained_here"]) == (2, 32, False)
    (tmp_path / "empty").mkdir()
    refused = headscope("analyze", run.path, "sae_features", "--sae", tmp_path / "empty").refusal()
    assert refused.startswith("error: sae: ")


def test_a_stopped_training_goes_on_and_leaves_no_checkpoint(
    texts, tmp_path, headscope, monkeypatch
):
    from headscope.analyses._sparse_autoencoders import checkpoint
    from headscope.analyses._sparse_autoencoders.training import Training

    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    given = ("sae", "train", MODEL, "--layer", 1, "--prompts", texts, *SMALL)
    headscope(*given, "--out", tmp_path / "whole").printed()
    step = Training.step

    def stopped(self, vectors):
        if self.done == 7:
            raise KeyboardInterrupt
        step(self, vectors)

    out, kept = tmp_path / "sae", tmp_path / "sae.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopped)
        headscope(*given, "--out", out)
    assert kept.is_file()
    assert not out.exists()
    assert "seed: " in headscope(*given, "--out", out, "--seed", 1).refusal()
    ended = headscope(*given, "--out", out)
    assert any(f"goes on from {kept}" in line for line in ended.err)
    assert ended.err[0].startswith("sae train: 0 tokens ")
    assert "; 5 of 12 steps; " in ended.err[0]
    ended.printed()
    assert not kept.exists()
    first, second = (saelens.load(folder) for folder in (tmp_path / "whole", out))
    assert torch.equal(first.decoder, second.decoder)


def test_what_cannot_be_trained_is_refused_before_it_runs(texts, tmp_path, headscope):
    given = ("sae", "train", MODEL, "--prompts", texts, "--out", tmp_path / "sae", *SMALL)
    assert "sae: no layer 99" in headscope(*given, "--layer", 99).refusal()
    assert "kind: 'gated'" in headscope(*given, "--layer", 0, "--kind", "gated").refusal()
    assert not (tmp_path / "sae").exists()


def test_without_texts_the_library_is_read(tmp_path, headscope):
    given = ("--layer", 0, "--out", tmp_path / "sae", "--features", 16, "--k", 2, "--steps", 4)
    headscope("sae", "train", "headscope/bundled-python", *given).printed()
    assert saelens.load(tmp_path / "sae").about["context_size"] == 256

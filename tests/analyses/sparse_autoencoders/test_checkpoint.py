"""A training that is stopped goes on from its checkpoint to the weights that it would have had."""

import json

import pytest
import torch
from refusals import check_message

from headscope.analyses._sparse_autoencoders import model_training
from headscope.analyses._sparse_autoencoders.checkpoint import Checkpoint
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.analyses._sparse_autoencoders.training import Settings
from headscope.probes import tasks
from headscope.probes.attention import work

SETTINGS = Settings("topk", 48, 4, steps=30, batch=16, rate=3e-3)
ABOUT = {"layer": 1, "steps": 30}


class StoppedError(Exception):
    """The training is stopped from outside."""


@pytest.fixture(scope="module")
def texts(bundled):
    task = tasks.make("story", bundled.tokenizer, 24)
    return [bundled.encode(prompt.clean) for prompt in task.prompts]


@pytest.mark.parametrize("room", [64, 2**15])
def test_a_stopped_training_ends_in_the_same_weights(bundled, texts, tmp_path, monkeypatch, room):
    monkeypatch.setattr(model_training, "ROOM", room)
    whole = model_training.train(bundled, texts, Site(1), SETTINGS, context=32)
    path = tmp_path / "sae.checkpoint"

    def stopping(at):
        def report(done, total):
            if done == at:
                raise StoppedError

        return report

    for at in (11, 23):
        with pytest.raises(StoppedError):
            model_training.train(
                bundled, texts, Site(1), SETTINGS, context=32, report=stopping(at),
                checkpoint=Checkpoint(path, ABOUT, 0),
            )  # fmt: skip
        assert int(Checkpoint(path, ABOUT).read()["training.done"]) == at - 1
    steps, ran = [], []
    left, all_of_it = (
        model_training.estimate(bundled, texts, Site(1), SETTINGS, context=32, done=done)
        for done in (22, 0)
    )
    with work.counting(lambda tokens, _: ran.append(tokens)):
        again = model_training.train(
            bundled, texts, Site(1), SETTINGS, context=32, checkpoint=Checkpoint(path, ABOUT, 0),
            report=lambda done, _: steps.append(done),
        )  # fmt: skip
    assert (left.tokens > 0) == (sum(ran) > 0)
    assert left.tokens < all_of_it.tokens
    assert left.seconds < all_of_it.seconds
    assert f"{len(steps)} of {SETTINGS.steps} steps" in str(left)
    assert steps == list(range(23, 31))
    for name, part in whole.state_dict().items():
        assert torch.equal(part, again.state_dict()[name]), name


def test_a_checkpoint_of_another_training_is_refused_by_what_differs(tmp_path):
    path = tmp_path / "sae.checkpoint"
    assert Checkpoint(path, ABOUT).read() is None
    Checkpoint(path, ABOUT, 0).keep(lambda: {"done": torch.tensor(3)})
    assert Checkpoint(path, ABOUT).read()["done"] == 3
    check_message("steps: .* with 30, not 40", Checkpoint(path, ABOUT | {"steps": 40}).read)
    check_message("head: .* with None, not 2", Checkpoint(path, ABOUT | {"head": 2}).read)
    path.write_bytes(b"no tensors")
    check_message("resume: .* is broken", Checkpoint(path, ABOUT).read)
    header = json.dumps({"__metadata__": {"format": "other"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    check_message("resume: .* is no checkpoint", Checkpoint(path, ABOUT).read)
    Checkpoint(path, ABOUT).delete()
    assert not path.exists()


def test_a_checkpoint_is_written_no_more_often_than_its_period(tmp_path):
    checkpoint = Checkpoint(tmp_path / "sae.checkpoint", ABOUT, 3600)
    checkpoint.keep(lambda: {"done": torch.tensor(3)})
    assert not checkpoint.path.exists()

"""Checkpoints by name: shipped ones, folders, revisions of the hub."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RevisionNotFoundError
from refusals import check_message, check_refusal, refusal
from transformers import LlamaConfig, LlamaForCausalLM

from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, checkpoints, load_model
from headscope.probes.models.checkpoints import stamp
from headscope.probes.models.model_source import locate

SERIES = "headscope/induction"


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a trainer: one folder a checkpoint, and other files."""
    folder = tmp_path_factory.mktemp("trained")
    for step in (100, 20):
        tiny(step).save_pretrained(folder / f"checkpoint-{step}")
    (folder / "runs").mkdir()
    return folder


def test_the_shipped_series_is_listed_in_order_and_its_last_is_the_default():
    names = checkpoints(SERIES)
    steps = [int(name.removeprefix(f"{SERIES}@step")) for name in names]
    assert steps == sorted(steps)
    assert len(steps) >= 8
    model = load_model(SERIES)
    assert model.name == names[-1]
    assert model.revision == load_model(names[-1]).revision


def test_provenance_names_the_step_and_each_has_weights_of_its_own():
    first, last = (load_model(name) for name in (checkpoints(SERIES)[0], checkpoints(SERIES)[-1]))
    assert first.revision != last.revision
    attrs = capture(first, [[0, 5, 6, 7]], stats=("entropy",)).attrs
    assert (attrs["model"], attrs["revision"]) == (f"{SERIES}@step0", first.revision)
    assert first.encode("Mary")[0] == first.tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            f"{SERIES}@step7",
            r"^model: headscope/induction has no checkpoint 'step7'; it has step0, ",
        ),
        ("headscope/bundled@step7", r"^model: headscope/bundled is one model, without checkpoints"),
        ("no/where@step7", r"^model: 'no/where@step7' is no folder"),
        ("no/where@a b", r"^model: 'a b' is no revision"),
        ("./no/where@step7", r"^model: there is no folder ./no/where@step7"),
    ],
)
def test_what_is_not_there_is_refused_by_name(source, said):
    assert re.search(said, str(refusal(load_model, source)))


def test_folders_of_a_trainer_are_found_in_order_of_step(trained):
    result = checkpoints(trained)
    assert result == [str(trained / "checkpoint-20"), str(trained / "checkpoint-100")]
    weight = load_model(result[1]).module.state_dict()["lm_head.weight"]
    torch.testing.assert_close(weight, tiny(100).lm_head.weight.detach())
    for empty in (trained / "runs", "headscope/bundled"):
        check_message("has no checkpoints; they are named by their", checkpoints, empty)
    check_message("there is no folder", checkpoints, trained / "gone")


def test_variants_that_transformers_wrote_lie_side_by_side(tmp_path):
    for step in (5, 30):
        tiny(step).save_pretrained(tmp_path, variant=f"step{step}")
    assert checkpoints(tmp_path) == [f"{tmp_path}@step5", f"{tmp_path}@step30"]
    for step, source in ((5, f"{tmp_path}@step5"), (30, tmp_path)):
        result = load_model(source)
        assert result.name == f"{tmp_path}@step{step}"
        weight = result.module.lm_head.weight.detach()
        torch.testing.assert_close(weight, tiny(step).lm_head.weight.detach())


def test_a_stamp_changes_with_its_own_checkpoint_alone(tmp_path):
    for step in (5, 30):
        tiny(step).save_pretrained(tmp_path, variant=f"step{step}")
    before = [stamp(name) for name in checkpoints(tmp_path)]
    tiny(31).save_pretrained(tmp_path, variant="step30")
    after = [stamp(name) for name in checkpoints(tmp_path)]
    assert before[1] != after[1]
    weights, other = (one.split()[-1] for one in (before[0], after[0]))
    assert weights == other


class TestHub:
    """A cache as the hub's own library leaves it; no network is there."""

    @pytest.fixture
    def commits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        place = tmp_path / "models--someone--small"
        (place / "refs").mkdir(parents=True)
        commits = {"step10": "a" * 40, "step200": "b" * 40, "main": "c" * 40}
        for seed, (revision, commit) in enumerate(commits.items()):
            tiny(seed).save_pretrained(place / "snapshots" / commit)
            (place / "refs" / revision).write_text(commit)
        return commits

    def test_a_revision_is_loaded_and_named_by_its_commit(self, commits):
        for seed, (revision, commit) in enumerate(commits.items()):
            model = load_model(f"someone/small@{revision}")
            assert (model.name, model.revision) == (f"someone/small@{revision}", commit)
            weights = (one.lm_head.weight.detach() for one in (model.module, tiny(seed)))
            torch.testing.assert_close(*weights)
        assert load_model("someone/small").revision == commits["main"]

    def test_revisions_named_by_a_step_are_the_checkpoints(self, commits):
        assert checkpoints("someone/small") == ["someone/small@step10", "someone/small@step200"]
        assert stamp("someone/small@step10") == f"step10 {commits['step10']}"

    def test_a_revision_that_is_not_there_is_refused(self, commits):
        with pytest.raises(HeadscopeError, match=r"'someone/small@step11' .* cannot be reached"):
            load_model("someone/small@step11")
        check_message("the local cache has no revision of it", checkpoints, "someone/else")

    def test_the_hub_s_own_revisions_are_named_in_the_refusal(self, monkeypatch):
        def refs(api: object, name: str) -> SimpleNamespace:
            branches = [SimpleNamespace(name=one) for one in ("main", "step0", "step512")]
            return SimpleNamespace(branches=branches, tags=[SimpleNamespace(name="v1")])

        def info(api: object, name: str, **options: object) -> None:
            request = httpx.Request("GET", "https://hub.invalid")
            raise RevisionNotFoundError("no", response=httpx.Response(404, request=request))

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", refs)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
        assert checkpoints("someone/online") == ["someone/online@step0", "someone/online@step512"]
        output = (
            "someone/online has no revision 'step3' on the hub; it has main, step0, step512, v1"
        )
        assert output in str(refusal(load_model, "someone/online@step3"))


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path):
    place = tmp_path / "me@home"
    tiny(1).save_pretrained(place)
    assert locate(place).name == str(place)
    shutil.rmtree(place)
    check_refusal("model", locate, place)

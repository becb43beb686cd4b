"""Loading: the real path, the check at load, and every refusal."""

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import pytest
import tokenizers_of_text
import torch
from refusals import check_refusal, refusal
from tokenizers import processors

from headscope.probes import Model, capture, load_model, tasks
from headscope.probes.attention import interface
from headscope.probes.prompts.reading import read


def test_a_folder_gives_the_dataset_of_the_object(folder, tiny, words):
    texts = ["w1 w2 w3 w1", "w9 w8"]
    saved = capture(load_model(folder), texts, keep=("q", "z"))
    object_ = capture(load_model(tiny("llama"), tokenizer=words), texts, keep=("q", "z"))
    assert saved.assign_attrs(model="").identical(object_.assign_attrs(model=""))
    assert saved.attrs["model"] == str(folder)
    assert saved.attrs["revision"].startswith("sha256:")


def test_capture_takes_whatever_load_model_takes(folder):
    direct = capture(str(folder), "w1 w2", stats=("entropy",))
    assert direct.identical(capture(load_model(folder), "w1 w2", stats=("entropy",)))


def test_what_a_model_states_of_itself(folder):
    model = load_model(folder)
    assert (model.layers, model.heads, model.kv_heads, model.head_size) == (2, 4, 2, 8)
    assert (model.context, model.vocabulary) == (128, 64)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert model.architecture == "LlamaForCausalLM"
    assert not model.module.training
    assert load_model(model) is model


def test_a_model_prints_one_line(bundled):
    assert repr(bundled).startswith(
        "<Model headscope/bundled: LlamaForCausalLM, 4 layers of 8 heads"
    )
    assert repr(bundled).endswith("torch.float32 on cpu>")


def test_other_weights_have_another_revision(tiny):
    module = tiny("llama")
    first = load_model(module).revision
    assert load_model(tiny("llama")).revision == first
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert load_model(module).revision != first
    half = tiny("llama").to(torch.bfloat16)
    assert load_model(half).revision == load_model(half.float()).revision != first


def test_bos_comes_first_once(folder):
    model = load_model(folder)
    assert model.encode("w1 w2") == [0, 3, 4]
    assert model.encode("<bos> w1 w2") == [0, 3, 4]
    assert model.to_str_tokens([0, 3, 4]) == ["<bos>", "w1", "w2"]
    assert load_model(model.module).to_str_tokens([5]) == ["5"]


def test_special_tokens_are_those_of_the_tokenizer_unless_the_user_sets_others(tiny, words):
    plain = copy.deepcopy(words)
    plain.backend_tokenizer.post_processor = processors.Sequence([])
    task = tasks.make("induction", plain, n=1, length=4, register="natural")
    for tokenizer, own in ((words, [0]), (plain, [])):
        for bos, first in ((None, own), (True, [0]), (False, [])):
            model = load_model(tiny("llama"), tokenizer=tokenizer, bos=bos)
            assert model.encode("w1 w2") == [*first, 3, 4]
            captured = capture(model, task, stats=("entropy",))["token_id"].values[0]
            assert captured.tolist()[: len(first) + 1] == [*first, task.prompts[0].clean[0]]
    check_refusal("bos", load_model, tiny("llama"), bos=True)


def test_words_keep_the_spaces_of_byte_level_tokens(tiny):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"Ġ": 0, "a": 1, "Ġa": 2, "Ċ": 3}, [("Ġ", "a")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    model = load_model(tiny("llama"), tokenizer=tokenizer)
    ids = model.encode("a a\n")
    assert ids == [1, 2, 3]
    assert model.to_str_tokens(ids) == ["a", " a", "\n"]


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_a_character_of_several_tokens_stands_at_the_first(kind, tiny):
    model = replace(load_model(tiny("llama")), tokenizer=getattr(tokenizers_of_text, kind)())
    ids = model.encode("日é")
    words = model.to_str_tokens(ids)
    assert len(words) == len(ids) > 2
    assert "".join(words).replace("⋯", "").removeprefix("<bos>") == "日é"
    assert words[words.index("日") + 1] == "⋯"
    broken = ids[: len(ids) - 1]
    assert "é" not in model.to_str_tokens(broken)


def test_words_keep_the_spaces_of_sentence_pieces(tiny):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    model = load_model(tiny("llama"), tokenizer=PreTrainedTokenizerFast(tokenizer_object=inner))
    assert model.to_str_tokens(model.encode("a a")) == [" a", " a"]


def test_a_tokenizer_can_be_named(folder, tiny):
    assert load_model(tiny("llama"), tokenizer=folder).encode("w1") == [0, 3]
    check_refusal("tokenizer", load_model, tiny("llama"), tokenizer=str(folder / "nothing"))


def test_half_precision_can_be_asked_for(folder):
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    check_refusal("dtype", load_model, folder, dtype="int8")


def test_a_name_without_a_hub_is_refused_at_once():
    start = time.perf_counter()
    line = str(refusal(load_model, "gpt2"))
    assert time.perf_counter() - start < 10
    assert line.startswith("model: 'gpt2' ")
    assert "hub" in line


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "~/nothing-here", Path("x/y")])
def test_a_folder_that_is_not_there_is_refused(source):
    assert str(refusal(load_model, source)) == f"model: there is no folder {source}"


def test_folders_without_a_model_are_refused(tmp_path, folder):
    assert "no config.json" in str(refusal(load_model, tmp_path))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    start = f"model: '{tmp_path}' does not load: "
    assert str(refusal(load_model, tmp_path)).startswith(start)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert str(refusal(load_model, tmp_path)).startswith(start)
    (tmp_path / "config.json").write_text("{broken")
    check_refusal("model", load_model, tmp_path)


def test_missing_weights_are_refused_instead_of_drawn_at_random(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    line = "lacks weights, first model.layers.1.self_attn.q_proj.weight"
    assert line in str(refusal(load_model, tmp_path))


def test_pickled_weights_are_refused(folder, tmp_path, tiny):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(tiny("llama").state_dict(), tmp_path / "pytorch_model.bin")
    check_refusal("model", load_model, tmp_path)


def test_objects_that_are_no_models_are_refused():
    assert str(refusal(load_model, 3)).startswith("model: int is none of")
    assert str(refusal(load_model, torch.nn.Linear(2, 2))).startswith("model: Linear is none")


def test_an_object_is_never_moved(tiny):
    module = tiny("llama")
    check_refusal("dtype", load_model, module, dtype="bfloat16")
    check_refusal("device", load_model, module, device="meta")
    assert module.dtype == torch.float32


def test_encoders_and_decoders_need_a_choice():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    line = str(refusal(load_model, T5ForConditionalGeneration(config)))
    assert line.startswith("attention: T5ForConditionalGeneration has an encoder and a decoder")
    assert all(repr(one) in line for one in ("encoder", "decoder", "cross"))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers_are_named(bad, tiny):
    module = tiny("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[2, 2] = bad
    line = str(refusal(load_model, module))
    assert line.startswith("model: weight model.layers.1.mlp.up_proj.weight of ")


def spoiled(change: Any) -> Any:
    """Make an engine that is wrong in one place."""
    known = interface.attend

    def attend(*given: Any, **options: Any) -> Any:
        outputs = dict(known(*given, **options))
        change(outputs)
        return outputs

    return attend


@pytest.mark.parametrize("name", ["entropy", "max_weight", "first_mass", "received"])
def test_the_check_names_a_statistic_that_is_wrong(name, tiny, monkeypatch):
    calls: list[int] = []

    def change(outputs: dict[str, torch.Tensor]) -> None:
        calls.append(1)
        if name in outputs and len(calls) == 2:  # the second layer
            outputs[name] = outputs[name].clone()
            outputs[name][0, 3, 5] += 0.01

    monkeypatch.setattr(interface, "attend", spoiled(change))
    line = f"model: {name} of L1H3 in LlamaForCausalLM is 0.01 away"
    assert str(refusal(load_model, tiny("llama"))).startswith(line)


def test_the_check_names_an_output_that_is_wrong(tiny, monkeypatch):
    def change(outputs: dict[str, torch.Tensor]) -> None:
        outputs["z"] = outputs["z"].roll(1, dims=1)

    monkeypatch.setattr(interface, "attend", spoiled(change))
    assert "differs from its eager attention" in str(refusal(load_model, tiny("llama")))


def test_the_check_demands_that_edits_matter(tiny, monkeypatch):
    known = interface._attend

    def deaf(module: Any, *tensors: Any, **fields: Any) -> Any:
        """Report to the receiver, but go on with attention of its own."""
        known(module, *tensors, **fields)
        from transformers.models.llama.modeling_llama import eager_attention_forward

        length = tensors[0].shape[2]
        mask = torch.full((length, length), -torch.inf).triu(1)
        return eager_attention_forward(module, *tensors[:3], mask, fields["scaling"])

    from transformers import AttentionInterface

    AttentionInterface.register(interface.NAME, deaf)
    try:
        line = str(refusal(load_model, tiny("llama")))
    finally:
        AttentionInterface.register(interface.NAME, known)
    assert "removing every head of LlamaForCausalLM changes nothing" in line


def test_positions_that_start_after_padding_shorten_the_context():
    model = load_model(architectures.build("roberta", max_position_embeddings=40))
    longest = 40 - 2
    assert model.context == longest
    result = capture(model, [[5] * longest], stats=("entropy",))
    assert not result["entropy"].isnull().any()
    check_refusal("prompts", capture, model, [[5] * (longest + 1)], stats=("entropy",))


def test_a_long_prompt_looks_the_vocabulary_up_once(tiny, monkeypatch):
    model, asked = load_model(tiny("llama")), []
    whole = Model.vocabulary.fget  # type: ignore[attr-defined]
    counted = property(lambda self: asked.append(1) or whole(self))
    monkeypatch.setattr(Model, "vocabulary", counted)
    read(model, [[1, 2, 3] * 30])
    assert len(asked) == 1
    check_refusal("prompts", read, model, [[1], [1, 64, 2, 99]])

"""Files of SAELens: read as its documented layouts say, written so that it reads them."""

import json

import numpy as np
import pytest
import torch
from refusals import check_message
from safetensors.numpy import load_file, save_file

from headscope.analyses._sparse_autoencoders import saelens
from headscope.analyses._sparse_autoencoders.autoencoder import KINDS, SparseAutoencoder
from headscope.analyses._sparse_autoencoders.site import Site

SIZE, FEATURES = 12, 20

# The fields of an autoencoder that version 3 to 5 writes, and of one by version 6.
OLD = {
    "architecture": "standard", "d_in": SIZE, "d_sae": FEATURES, "dtype": "float32",
    "device": "cpu", "model_name": "gpt2-small", "hook_name": "blocks.5.attn.hook_z",
    "hook_layer": 5, "hook_head_index": None, "activation_fn_str": "relu",
    "activation_fn_kwargs": {}, "apply_b_dec_to_input": True, "finetuning_scaling_factor": False,
    "sae_lens_training_version": None, "prepend_bos": True, "dataset_path": "a/b",
    "dataset_trust_remote_code": True, "context_size": 128, "normalize_activations": "none",
    "neuronpedia_id": None, "model_from_pretrained_kwargs": {},
}  # fmt: skip
NEW = {
    "d_in": SIZE, "d_sae": FEATURES, "dtype": "float32", "device": "cpu",
    "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "hook_z",
    "metadata": {
        "sae_lens_version": "6.1.0", "sae_lens_training_version": "6.1.0",
        "model_name": "gpt2-small", "hook_name": "blocks.5.attn.hook_z", "hook_head_index": None,
        "prepend_bos": True, "context_size": 128,
    },
    "architecture": "standard",
}  # fmt: skip


def weights(*more):
    rng = np.random.default_rng(0)
    shapes = {
        "W_enc": (SIZE, FEATURES), "b_enc": (FEATURES,), "W_dec": (FEATURES, SIZE),
        "b_dec": (SIZE,), "threshold": (FEATURES,),
    }  # fmt: skip
    names = ("W_enc", "b_enc", "W_dec", "b_dec", *more)
    made = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in names}
    return {name: np.abs(each) if name == "threshold" else each for name, each in made.items()}


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def activations(x, w, *, kind="standard", k=0, centred=True, rescaled=False):
    """What SAELens' encoders compute, in NumPy."""
    scores = (x - centred * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    norms = np.linalg.norm(w["W_dec"], axis=1)
    if rescaled:
        scores = scores * norms
    if kind == "jumprelu":
        return np.where(scores > w["threshold"], np.maximum(scores, 0), 0)
    if kind == "topk":
        least = np.sort(scores, axis=-1)[..., [-k]]
        return np.where(scores >= least, np.maximum(scores, 0), 0)
    return np.maximum(scores, 0)


def output(active, w, *, rescaled=False):
    norms = np.linalg.norm(w["W_dec"], axis=1) if rescaled else 1.0
    return active / norms @ w["W_dec"] + w["b_dec"]


TOPK_OLD = {**OLD, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
TOPK = {**NEW, "architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": False}
CASES = {
    "old standard": (OLD, {}),
    "old names": (
        {
            {"hook_name": "hook_point", "hook_layer": "hook_point_layer"}.get(name, name): value
            for name, value in OLD.items()
            if name != "architecture"
        },
        {},
    ),
    "old topk": (TOPK_OLD, {"kind": "topk", "k": 3}),
    "old jumprelu": ({**OLD, "architecture": "jumprelu"}, {"kind": "jumprelu"}),
    "bias at the input left out": ({**OLD, "apply_b_dec_to_input": False}, {"centred": False}),
    "standard": (NEW, {}),
    "topk": (TOPK, {"kind": "topk", "k": 3}),
    "rescaled topk": (
        {**TOPK, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False},
        {"kind": "topk", "k": 3, "rescaled": True, "centred": False},
    ),
    "jumprelu": ({**NEW, "architecture": "jumprelu"}, {"kind": "jumprelu"}),
    "trained standard": ({**NEW, "l1_coefficient": 5.0, "decoder_init_norm": 0.1}, {}),
}


@pytest.mark.parametrize(("config", "how"), CASES.values(), ids=CASES)
def test_documented_layouts_compute_what_saelens_computes(config, how, tmp_path):
    w = weights(*(("threshold",) if how.get("kind") == "jumprelu" else ()))
    sae = saelens.load(write(tmp_path / "sae", config, w))
    x = np.random.default_rng(1).normal(size=(50, SIZE)).astype(np.float32)
    expected = activations(x, w, **how)
    assert 0 < (expected > 0).mean() < 0.9
    result = sae.encode(torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    made = output(expected, w, rescaled=how.get("rescaled", False))
    np.testing.assert_allclose(sae(torch.from_numpy(x)).numpy(), made, atol=2e-5)
    assert sae.site == Site(5)
    assert sae.about["model_name"] == "gpt2-small"


def test_a_logarithm_of_the_threshold_and_a_single_head_are_read(tmp_path):
    w = weights("threshold")
    logarithm = {**w, "log_threshold": np.log(w["threshold"])}
    del logarithm["threshold"]
    metadata = {**NEW["metadata"], "hook_head_index": 2}
    single = {"architecture": "jumprelu", "reshape_activations": "none", "metadata": metadata}
    sae = saelens.load(write(tmp_path / "sae", {**NEW, **single}, logarithm))
    np.testing.assert_allclose(sae.threshold.numpy(), w["threshold"], rtol=1e-5)
    assert sae.site == Site(5, 2)


def random_autoencoder(kind, head=None):
    generator = torch.Generator().manual_seed(3)
    sae = SparseAutoencoder(kind, SIZE, FEATURES, Site(4, head), k=3, about={"model_name": "m"})
    for name, part in sae.named_parameters():
        part.data = torch.randn(part.shape, generator=generator)
        if name == "threshold":
            kept = {"jumprelu": part.data.abs(), "batchtopk": torch.full((FEATURES,), 0.7)}
            part.data = kept.get(kind, torch.zeros(FEATURES))
    return sae.requires_grad_(False)


@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again_and_has_the_layout_of_version_6(kind, head, tmp_path):
    sae = random_autoencoder(kind, head)
    folder = tmp_path / "deep" / "sae"
    saelens.save(sae, folder)
    again = saelens.load(folder)
    x = torch.randn(60, SIZE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again(x), sae(x))
    assert (again.site, again.about["model_name"]) == (sae.site, "m")

    config = json.loads((folder / "cfg.json").read_text())
    architecture = {"relu": "standard", "topk": "topk"}.get(kind, "jumprelu")
    # The dataclass fields of its configuration of this architecture, and no others.
    fields = {*NEW, *({"k", "rescale_acts_by_decoder_norm"} if kind == "topk" else ())}
    assert set(config) == fields
    assert config["architecture"] == architecture
    assert config["metadata"]["sae_lens_version"] >= "6"
    assert config["metadata"]["hook_name"] == "blocks.4.attn.hook_z"
    assert config["metadata"]["hook_head_index"] == head
    assert config["reshape_activations"] == ("hook_z" if head is None else "none")
    tensors = load_file(folder / "sae_weights.safetensors")
    expected = {"W_enc", "b_enc", "W_dec", "b_dec"}
    assert set(tensors) == expected | ({"threshold"} if architecture == "jumprelu" else set())
    result = activations(x.numpy(), tensors, kind=architecture, k=3)
    np.testing.assert_allclose(result, sae.encode(x).numpy(), atol=1e-5)
    assert {each.name for each in folder.parent.iterdir()} == {"sae"}


def test_a_folder_that_is_taken_stays(tmp_path):
    sae = random_autoencoder("relu")
    saelens.save(sae, tmp_path / "sae")
    check_message(
        "holds a sparse autoencoder; give --overwrite", saelens.save, sae, tmp_path / "sae"
    )
    saelens.save(random_autoencoder("topk"), tmp_path / "sae", overwrite=True)
    assert saelens.load(tmp_path / "sae").kind == "topk"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    check_message(
        "holds no sparse autoencoder", saelens.save, sae, tmp_path / "other", overwrite=True
    )
    assert (tmp_path / "other" / "notes.txt").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "gated"}, "architecture 'gated' is not one of"),
        ({"architecture": "batchtopk"}, "save it for inference, as jumprelu"),
        ({"new_gain": 2.0}, "new_gain of"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it into the weights"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"hook_name": "blocks.5.hook_resid_pre"}, "hook_name 'blocks.5.hook_resid_pre'"),
        ({"reshape_activations": "none"}, "reshape_activations 'none'"),
        ({"hook_name_out": "blocks.5.hook_mlp_out"}, "that of a transcoder"),
        ({"d_sae": 21}, "W_dec of"),
        ({"d_in": "12"}, "d_in is '12'"),
        ({"architecture": "topk"}, "k is None"),
        ({"architecture": "jumprelu"}, "has no threshold"),
    ],
)
def test_what_may_change_the_numbers_is_refused_by_name(changed, message, tmp_path):
    check_message(message, saelens.load, write(tmp_path / "sae", {**OLD, **changed}, weights()))


def test_broken_files_are_refused(tmp_path):
    check_message("cfg.json cannot be read", saelens.load, tmp_path)
    check_message("holds threshold", saelens.load, write(tmp_path, OLD, weights("threshold")))
    odd = {**weights(), "scaling_factor": np.full(FEATURES, 2, dtype=np.float32)}
    check_message("scaling_factor of", saelens.load, write(tmp_path, OLD, odd))
    odd = {**weights(), "b_dec": np.full(SIZE, np.nan, dtype=np.float32)}
    check_message("b_dec of", saelens.load, write(tmp_path, OLD, odd))
    (tmp_path / "sae_weights.safetensors").write_bytes(b"none")
    check_message("cannot be read", saelens.load, tmp_path)

"""Images as prompts: what is taken, what is refused, and what the tokens are called."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from architectures import VISION
from PIL import Image
from refusals import check_refusal, refusal

from headscope.analyses import rollout
from headscope.analyses._interventions.ablation import evaluate
from headscope.probes import capture, load_model
from headscope.probes.attention.forward import logits
from headscope.probes.prompts.tasks import make

TEXT = {name: VISION[name] for name in VISION if "size" not in name} | {"vocab_size": 64}


def build(family: str, **more: Any) -> Any:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **{**VISION, **more})
    return transformers.AutoModel.from_config(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def processor() -> Any:
    return transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def vit(processor: Any) -> Any:
    return load_model(build("vit"), tokenizer=processor)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_all_ways_to_give_the_same_image_agree(vit, processor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "one.png")
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    ways = (pixels, pixels[0], pixels.numpy(), [pixels[0].tolist()], picture, [picture],
            tmp_path / "one.png", [str(tmp_path / "one.png")])  # fmt: skip
    result = [capture(vit, way, stats=("entropy",)) for way in ways]
    for one in result[1:]:
        xr.testing.assert_identical(one, result[0])


def test_names_and_numbers_of_patches(vit):
    result = capture(vit, images(2, 3, 16, 16), stats=("entropy",), keep=("resid",))
    patches = [f"r{row}c{column}" for row in range(4) for column in range(4)]
    assert result["token"].values[1].tolist() == ["[CLS]", *patches]
    assert result["token_id"].values[0].tolist() == list(range(17))
    own = vit.module(images(2, 3, 16, 16), output_hidden_states=True).hidden_states
    for boundary in range(3):
        resid = result["resid"].isel(boundary=boundary).values
        np.testing.assert_allclose(resid, own[boundary].numpy(), atol=5e-5)
    assert (vit.context, vit.vocabulary, vit.reads) == (None, 0, "images")


@pytest.mark.parametrize(
    ("family", "before"),
    [
        ("deit", ["[CLS]", "[DIST]"]),
        ("dinov2_with_registers", ["[CLS]", "[REG0]", "[REG1]", "[REG2]", "[REG3]"]),
        ("siglip_vision_model", []),
        ("dinov3_vit", ["[CLS]"]),
    ],
)
def test_special_tokens_are_those_of_the_model(family, before):
    result = capture(build(family), images(1, 3, 16, 16), stats=("entropy",))
    words = result["token"].values[0].tolist()
    assert words[: len(before) + 1] == [*before, "r0c0"]
    assert len(words) == len(before) + 16


def test_special_tokens_stand_where_the_names_put_them():
    # Only a patch of the image that is brightened may change its own row of the first residual.
    model = load_model(build("dinov2_with_registers"))
    dark = torch.zeros(1, 3, 16, 16)
    bright = dark.clone()
    bright[..., 4:8, 8:12] = 5.0
    pair = [capture(model, one, stats=(), keep=("resid",)) for one in (dark, bright)]
    moved = (pair[0]["resid"] != pair[1]["resid"]).isel(boundary=0, prompt=0).any("channel")
    assert pair[0]["token"].values[0][moved.values].tolist() == ["r1c2"]


def test_a_model_that_takes_other_sizes_gets_other_patches():
    result = capture(build("dinov2"), images(1, 3, 8, 24), stats=("entropy",))
    assert result["token"].values[0, [1, 6, 7, 12]].tolist() == ["r0c0", "r0c5", "r1c0", "r1c5"]


def test_a_capture_on_disk_is_the_same(vit, tmp_path):
    given = images(3, 3, 16, 16)
    kept = capture(vit, given, stats=("entropy", "received"), out=tmp_path / "a.safetensors")
    whole = capture(vit, given, stats=("entropy", "received"))
    for name in ("entropy", "received", "pixels", "token"):
        np.testing.assert_array_equal(kept[name].values, whole[name].values)


def test_attention_is_followed_through_an_image(vit):
    result = rollout.rows(capture(vit, images(1, 3, 16, 16), stats=(), keep=("q", "k")), (0,))
    maps = capture(vit, images(1, 3, 16, 16), stats=("pattern",))["pattern"].values[0].mean(1)
    mixed = (maps.astype(float) + np.eye(17)) / 2
    np.testing.assert_allclose(result["rollout"].values[0], (mixed[1] @ mixed[0])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "prompts: there are none"),
        (["the cat"], "image 1: there is no file the cat"),
        ([[5, 6, 7]], "image 1 is 3; ViTModel reads images"),
        (torch.zeros(1, 16, 16), "image 1 is 1 × 16 × 16; ViTModel reads images"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "image 1 holds uint8"),
        (torch.full((1, 3, 16, 16), float("nan")), "image 1 holds NaN"),
        (torch.zeros(1, 3, 20, 20), "prompts: Input image size"),
        (torch.zeros(1, 3, 18, 16), "18 × 16 pixels is not made of patches of 4 × 4"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 16, 20)], "image 2 is 3 × 16 × 20 and image 1"),
        ([object()], "image 1 is a object"),
    ],
)
def test_what_is_no_image_is_refused(vit, given, said):
    assert said in str(refusal(capture, vit, given))


def test_pictures_need_a_processor_and_words_a_model_of_words(vit, tmp_path):
    bare = load_model(build("vit"))
    assert "needs an image processor" in str(refusal(capture, bare, Image.new("RGB", (16, 16))))
    (tmp_path / "words.png").write_text("no picture")
    assert "is no image" in str(refusal(capture, vit, tmp_path / "words.png"))
    task = make("induction", n=1)
    for call in (capture, evaluate):
        line = "task: its prompts are texts, and ViTModel reads images"
        assert str(refusal(call, vit, task)) == line
    check_refusal("ids", logits, vit, images(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("vit_mae", {}, "ViTMAEModel makes 5 tokens of an image"),
        ("siglip2_vision_model", {}, "reads pixel_attention_mask, spatial_shapes beside"),
        ("wav2vec2", {}, "Wav2Vec2Model reads input_values; only tokens"),
        ("convnext", {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}, "attention"),
        ("clip", {"text_config": TEXT, "vision_config": VISION}, "CLIPModel holds two models"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_models_of_other_inputs_are_refused_by_name(family, more, said):
    error = refusal(load_model, build(family, **more))
    assert error.field == "model"
    assert said in str(error)

"""A ViT whose circuit is known, on image files, from the command line to the dashboard."""

import base64
import json
from pathlib import Path

import constructed
import numpy as np
import pytest
import transformers
from PIL import Image

from headscope import analyses
from headscope.app.pipeline import open_model
from headscope.probes import capture, pattern
from headscope.probes.storage import run_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_command) -> Path:
    """The ViT as its user saved it, with two image files, captured by the command line."""
    place = tmp_path_factory.mktemp("vision")
    constructed.vision().save_pretrained(place / "model")
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(place / "model")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (place / "images.txt").write_text(f"{place / '0.png'}\n{place / '1.png'}\n")
    run = place / "run"
    run_command("capture", place / "model", "--prompts", place / "images.txt", "--out", run)
    run_command("analyze", run, "--all")
    run_command("report", run)
    for number in range(2):
        (place / f"{number}.png").unlink()  # a run needs its images no longer
    return run


def test_the_planted_heads_are_found_among_the_patches(folder):
    results = run_folder.open(folder).results()
    sinks = results["sinks"]
    assert sinks.attrs["heads_by_type"]["sink"] == ["L0H1"]
    assert float(sinks["sink"].sel(layer=0, head=1)) > 0.999
    assert float(sinks["sink"].sel(layer=0, head=3)) == pytest.approx(1 / 17, abs=1e-5)
    assert sinks["token"].values[[0, 1, 5, 16]].tolist() == ["[CLS]", "r0c0", "r1c0", "r3c3"]
    assert sinks.attrs["sink_tokens"][0]["token"] == "[CLS]"
    measured = {name for name, result in results.items() if "skipped" not in result.attrs}
    assert measured == {
        "blocks", "embedding", "entropy", "feature_maps", "concentration", "offsets", "segments",
        "sink_topology", "sinks", "token_classes",
    }  # fmt: skip
    # The patch after: row by row, as the patches are numbered.
    assert results["offsets"].attrs["heads_by_type"] == {"offset -1": ["L0H0"]}
    assert measured | set(results) == set(analyses.names())
    refused = [result.attrs["skipped"] for result in results.values() if "skipped" in result.attrs]
    assert all(output and "\n" not in output for output in refused)


def test_a_run_keeps_its_images_and_their_hash(folder):
    opened = run_folder.open(folder)
    images = opened.prompts()
    assert [image.shape for image in images] == [(3, 16, 16)] * 2
    model = open_model(opened)
    again = capture(model, images, stats=("received",), keep=("q", "k"))
    assert again.attrs["prompts_sha256"] == opened.manifest["prompts_sha256"]
    np.testing.assert_array_equal(again["received"].values, opened.capture["received"].values)
    other = capture(model, images[::-1], stats=("received",))
    assert other.attrs["prompts_sha256"] != again.attrs["prompts_sha256"]
    weights = pattern(again, layer=0, head=0)
    np.testing.assert_allclose(np.diagonal(weights.values, 1), 1.0, atol=1e-3)
    assert weights["token"].values[:3].tolist() == ["[CLS]", "r0c0", "r0c1"]


def test_the_dashboard_lays_a_row_over_the_patches(folder, dashboard):
    app = dashboard(folder, layer="0", head="0")
    assert not app.error
    assert app.main.subheader[1].value == "L0H0"
    captions = [one.value for one in app.main.caption]
    assert "image of 16 × 16 pixels (17 tokens)" in captions
    assert not [one for one in app.text_area if one.key == "text"]
    drawn = json.loads(app.main.get("plotly_chart")[1].proto.spec)
    assert drawn["layout"]["title"]["text"] == "<b>Attention of L0H0 from 0: [CLS]</b>"
    assert drawn["layout"]["yaxis"]["title"]["text"] == "row of patches"
    values = drawn["data"][-1]["z"]
    cells = np.frombuffer(base64.b64decode(values["bdata"]), "<f4").reshape(4, 4)
    assert cells[0, 0] > 0.999
    assert cells.ravel()[1:].max() < 1e-3
    app.select_slider(key="token_0_17").set_value(6).run()
    assert not app.exception
    drawn = json.loads(app.main.get("plotly_chart")[1].proto.spec)
    assert drawn["layout"]["title"]["text"] == "<b>Attention of L0H0 from 6: r1c1</b>"
    for view in ("scatter", "table"):
        dashboard(folder, view=view)

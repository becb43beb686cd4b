import json

import constructed
import numpy as np
import pytest
from architectures import eager_maps
from constructed import INDUCTION, SINK, UNIFORM, repeated
from refusals import check_message, check_refusal

from headscope.analyses import segments
from headscope.analyses._runtime.runner import execute
from headscope.analyses.token_groups import _segment_mass
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read


def label(tmp_path, rows):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(rows))
    return str(file)


@pytest.fixture(scope="module")
def maps(bundled):
    """The stock model's own attention maps of one text, in float64."""
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=1, seed=1)
    (ids,) = read(bundled, task).ids
    return list(ids), eager_maps(bundled.module, ids).numpy()


@pytest.mark.requirement("A19")
def test_the_mass_between_any_two_groups_is_that_of_the_models_own_maps(bundled, maps, tmp_path):
    ids, weights = maps
    labels = ["ab"[at % 3 > 1] if at % 5 else "" for at in range(len(ids))]
    options = {"labels": label(tmp_path, [labels]), "causal_prompts": 0}
    result = execute("segments", bundled, [ids], options=options)
    for one in "ab":
        for other in "ab":
            rows = [at for at, name in enumerate(labels) if name == one]
            columns = [at for at, name in enumerate(labels) if name == other]
            expected = weights[:, :, rows][..., columns].sum(-1).mean(-1)
            actual = result["segment_mass"].sel({"from": one, "to": other})
            np.testing.assert_allclose(actual, expected, atol=1e-5)
            seen = [sum(at <= row for at in columns) / (row + 1) for row in rows]
            enriched = result["enrichment"].sel({"from": one, "to": other})
            np.testing.assert_allclose(enriched, expected / np.mean(seen), atol=1e-4)


@pytest.mark.requirement("A19")
def test_an_even_head_is_enriched_nowhere_and_a_sink_is_where_it_looks(circuit):
    result = execute("segments", circuit, repeated(n=3, length=9), options={"causal_prompts": 0})
    assert result["from"].values.tolist() == ["first", "piece 1", "piece 2", "piece 3"]
    even = result["enrichment"].sel(layer=UNIFORM[0], head=UNIFORM[1]).values
    np.testing.assert_allclose(even[np.tril_indices(4)], 1.0, atol=1e-5)
    # Nobody sees what comes later, so there is no mass to speak of.
    assert np.isnan(even[np.triu_indices(4, 1)]).all()
    sink = result["segment_mass"].sel(layer=SINK[0], head=SINK[1], to="first")
    np.testing.assert_allclose(sink, 1.0, atol=1e-3)
    assert result.attrs["heads_by_type"]["piece 3 → first"] == ["L0H1"]
    own = result["own_mass"]
    # Of nineteen queries one is the first token; of an even head, each sees itself and its piece.
    assert float(own.sel(layer=SINK[0], head=SINK[1])) == pytest.approx(1 / 19, abs=1e-3)
    inside = [1.0, *((1 + at % 6) / (2 + at) for at in range(18))]
    assert float(own.sel(layer=UNIFORM[0], head=UNIFORM[1])) == pytest.approx(np.mean(inside))


@pytest.mark.requirement("A19")
def test_the_link_that_the_circuit_reads_is_the_one_that_costs(circuit, tmp_path):
    task = repeated(n=3, length=9)
    rows = [["", *["one"] * 9, *["two"] * 9]] * 3
    result = execute("segments", circuit, task, options={"labels": label(tmp_path, rows)})
    mass = result["segment_mass"].sel(layer=INDUCTION[0], head=INDUCTION[1])
    # Of nine words in the second half eight attend to what followed in the first; the last word was
    # followed by the second half itself.
    assert float(mass.sel({"from": "two", "to": "one"})) == pytest.approx(8 / 9, abs=1e-3)
    effect = result["link_effect"]
    assert float(effect.sel(one="two", other="one")) > 1.0
    assert abs(float(effect.sel(one="one", other="one"))) < 0.2
    assert effect.attrs["evidence"] == "causal"
    assert "two → one" in result.attrs["note"]


def test_roles_are_those_of_the_task_also_where_only_its_capture_is_left(bundled):
    task = tasks.make("needle", tokenizer=bundled.tokenizer, n=2, seed=4, length=40)
    held = capture(bundled, task, stats=("lse",))
    options = {"by": "roles", "causal_prompts": 2}
    given = segments.run(held, bundled, task, **options)
    check_message("give the task itself", segments.run, held, bundled, None, **options)
    assert {"needle", "key", "value", "query"} <= set(given["to"].values.tolist())
    # The question stands at the end of the prompt; its loss is that of the known answer.
    effect = given["link_effect"].sel(one="query")
    assert str(effect["other"].values[effect.fillna(-1).argmax("other")]) in {"value", "query"}
    assert float(effect.sel(other="value")) > 1.0
    other = tasks.make("needle", tokenizer=bundled.tokenizer, n=2, seed=5)
    check_message("not those of task needle", segments.run, held, bundled, other, **options)
    story = tasks.make("story", tokenizer=bundled.tokenizer, n=2, seed=1)
    told = capture(bundled, story, stats=("lse",))
    options["causal_prompts"] = 0
    again = segments.run(told, bundled, None, **options)
    assert again.identical(segments.run(told, bundled, story, **options))
    plain = capture(bundled, [held["token_id"].values[0].tolist()], stats=("lse",))
    check_message("come from none", segments.run, plain, bundled, None, by="roles")


@pytest.mark.requirement("A19")
def test_two_texts_of_an_encoder_attend_to_each_other():
    model = load_model(constructed.encoder(), tokenizer=constructed.encoder_tokenizer())
    start, end, word = 2, 3, 5
    query, document = range(word, word + 3), range(word + 10, word + 16)
    pair = [start, *query, end, *document, end]
    result = execute("segments", model, [pair, pair])
    assert result["to"].values.tolist() == ["special", "part 1", "part 2"]
    even = result["enrichment"].sel(layer=0, head=2).values
    np.testing.assert_allclose(even, 1.0, atol=1e-4)
    on_ends = result["segment_mass"].sel(layer=0, head=1, to="special")
    np.testing.assert_allclose(on_ends, 1.0, atol=1e-3)
    # L0H0 looks one token ahead: of the three words of the query two at each other, one at [SEP].
    ahead = result["segment_mass"].sel(layer=0, head=0).sel({"from": "part 1"})
    np.testing.assert_allclose(ahead, [1 / 3, 2 / 3, 0], atol=1e-3)
    assert result["link_effect"].attrs["units"] == "share of its length"
    assert float(result["link_effect"].min()) > 0


@pytest.mark.requirement("A19")
def test_patches_and_the_class_token_are_segments_of_an_image():
    model = load_model(constructed.vision())
    images = [np.random.default_rng(at).normal(size=(3, 16, 16)).astype("float32") for at in (0, 1)]
    result = execute("segments", model, images)
    assert result["to"].values.tolist() == ["[CLS]", "patch"]
    np.testing.assert_allclose(result["enrichment"].sel(layer=0, head=3), 1.0, atol=1e-3)
    on_class = result["segment_mass"].sel(layer=0, head=1, to="[CLS]")
    np.testing.assert_allclose(on_class, 1.0, atol=1e-3)
    # Only the even head L0H2 writes, and the patches are nearly all that it attends to.
    effect = result["link_effect"].sel(one="patch")
    assert float(effect.sel(other="patch")) > float(effect.sel(other="[CLS]")) > 0
    check_refusal("by", execute, "segments", model, images, options={"by": "pieces"})


def test_an_even_share_under_a_window(random_llama):
    held = capture(random_llama, [[0, 5, 6, 7, 8]], stats=("lse",))
    held["window"].values[:] = 2.0
    numbers = np.array([0, 0, 1, 1, 1])
    rows = _segment_mass.members(numbers, 2)
    result = _segment_mass.even(held, numbers, 2, rows)[0, 0]
    # Query 2 sees keys 1 and 2, so half of what it sees is in the first segment; 3 and 4 do not.
    np.testing.assert_allclose(result, [[1.0, np.nan], [0.5 / 3, 2.5 / 3]])


def test_bad_groupings_are_refused(circuit, tmp_path):
    prompts = [[0, 5, 6, 7], [0, 5, 6]]
    for rows, output in (
        ([["a"] * 4], "one list for each of 2"),
        ([["a"] * 4, ["a"]], "prompt 2 has 3 tokens"),
        ([[""] * 4, [""] * 3], "no token has one"),
    ):
        options = {"labels": label(tmp_path, rows)}
        check_message(output, execute, "segments", circuit, prompts, options=options)
    options = {"labels": str(tmp_path / "none.json")}
    check_message("cannot be read", execute, "segments", circuit, prompts, options=options)
    check_refusal("pieces", execute, "segments", circuit, prompts)
    options = {"labels": label(tmp_path, [[str(at) for at in range(15)]])}
    check_refusal("by", execute, "segments", circuit, [[0, *range(5, 19)]], options=options)

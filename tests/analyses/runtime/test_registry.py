import pytest
from refusals import check_message, check_refusal

from headscope import analyses
from headscope.analyses._runtime import options
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes import capture


def test_the_six_families_are_there():
    families = {"sinks", "head_types", "retrieval", "rollout", "importance", "sae_circuits"}
    assert families <= set(analyses.names())
    assert not [name for name in analyses.names() if name.startswith("_")]


def test_an_unknown_analysis_is_refused_by_name():
    check_refusal("analysis", analyses.load, "sink")
    with pytest.raises(InvalidInput, match="did you mean importance"):
        analyses.load("importanc")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epsilom": 1}, "epsilom: sinks has no such option"),
        ({"epsilon": "much"}, "epsilon: 'much' is not of the type float"),
        ({"least_queries": 1.5}, "least_queries: 1.5 is not of the type int"),
        ({"least_queries": True}, "least_queries: True is not of the type int"),
    ],
)
def test_bad_option_values_are_refused(given, message):
    check_message(message, options.parse, "sinks", analyses.options("sinks"), given)


def test_text_becomes_the_type_of_the_default():
    known = analyses.options("importance")
    parsed = options.parse("importance", known, {"normalize": "yes", "seed": "3", "metric": "task"})
    assert parsed == {"normalize": True, "seed": 3, "metric": "task"}
    assert parsed["normalize"] is True
    check_refusal("normalize", options.parse, "importance", known, {"normalize": "maybe"})


def test_a_capture_that_lacks_something_is_refused_with_what_gives_it(bundled):
    lacking = capture(bundled, [[0, 5, 6, 5]], stats=("entropy",))
    with pytest.raises(NotApplicable) as refused:
        analyses.load("feature_maps").run(lacking)
    assert '**analyses.needs("feature_maps"))' in str(refused.value)
    held = capture(bundled, [[0, 5, 6, 5]], **analyses.needs("feature_maps"))
    assert set(analyses.needs("feature_maps")["keep"]) <= set(held)


def test_needs_is_the_union_of_what_the_named_analyses_ask():
    asked = analyses.needs("head_types", "preplan_anchor", "embedding")
    types = ("offset_mass", "target_mass", "first_mass")
    assert asked["stats"] == (*types, "received_later", "distance")
    assert asked["keep"] == ("q", "k")
    assert asked["offsets"] == tuple(range(-1, 10))
    assert asked["targets"] == ("duplicate", "induction")
    # Where no offset is named, the capture's own default stays.
    assert set(analyses.needs("sinks")) == {"stats", "keep"}
    check_refusal("analysis", analyses.needs, "sink")

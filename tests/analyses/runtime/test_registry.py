import subprocess
import sys

import pytest

from headscope import analyses
from headscope.analyses._runtime import inputs, options
from headscope.kernels.errors import HeadscopeError


def test_the_six_families_are_there() -> None:
    families = {"sinks", "head_types", "retrieval", "rollout", "importance", "sae_circuits"}
    assert families <= set(analyses.names())
    assert not [name for name in analyses.names() if name.startswith("_")]


def test_listing_names_families_and_summaries_imports_no_torch() -> None:
    program = (
        "import sys; from headscope import analyses as a\n"
        "for f, names in a.families().items(): a.heading(f), [a.summary(n) for n in names]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


@pytest.mark.parametrize("name", analyses.names())
def test_every_option_has_help_and_a_plain_default(name: str) -> None:
    for option, (default, text, _) in analyses.options(name).items():
        assert type(default) in (bool, int, float, str), option
        assert len(text) > 10, f"{name}.{option} has no help"
    assert analyses.summary(name).endswith((".", "?"))
    assert set(inputs.positionals(name)) <= set(inputs.SUPPLIED)


def test_an_unknown_analysis_is_refused_by_name() -> None:
    with pytest.raises(HeadscopeError, match="no analysis is called 'sink'"):
        analyses.load("sink")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epsilom": 1}, "epsilom: sinks has no such option"),
        ({"epsilon": "much"}, "epsilon: 'much' is not of the type float"),
        ({"least_queries": 1.5}, "least_queries: 1.5 is not of the type int"),
        ({"least_queries": True}, "least_queries: True is not of the type int"),
    ],
)
def test_bad_option_values_are_refused(given: dict, message: str) -> None:
    with pytest.raises(HeadscopeError, match=message):
        options.parse("sinks", analyses.options("sinks"), given)


def test_text_becomes_the_type_of_the_default() -> None:
    known = analyses.options("importance")
    parsed = options.parse("importance", known, {"normalize": "yes", "seed": "3", "metric": "task"})
    assert parsed == {"normalize": True, "seed": 3, "metric": "task"}
    assert parsed["normalize"] is True
    with pytest.raises(HeadscopeError, match="normalize"):
        options.parse("importance", known, {"normalize": "maybe"})


def test_needs_is_the_union_of_what_the_named_analyses_ask() -> None:
    asked = analyses.needs("head_types", "preplan_anchor", "embedding")
    assert asked["stats"] == (
        "offset_mass",
        "target_mass",
        "first_mass",
        "received_later",
        "distance",
    )
    assert asked["keep"] == ("q", "k")
    assert asked["offsets"] == (-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert asked["targets"] == ("duplicate", "induction")
    # Where no offset is named, the capture's own default stays.
    assert set(analyses.needs("sinks")) == {"stats", "keep"}
    with pytest.raises(HeadscopeError, match="no analysis is called 'sink'"):
        analyses.needs("sink")

"""What every analysis owes its users; a new file in analyses/ is checked here unasked."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import constructed
import pytest
import xarray as xr
from refusals import check_refusal

from headscope import analyses, viz
from headscope.analyses._runtime import cost, evidence, inputs, runner, taxonomy
from headscope.kernels import statistics
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Task

SCALES = {"sequential", "diverging"}
FIELDS = {"model", "revision", "dtype", "prompts_sha256", "n_prompts", "seed", "headscope"}
# Small enough for seconds; every option that costs time has its own tests with the analysis.
PROMPTS = 4


@pytest.fixture(scope="module", params=analyses.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def given(name: str, bundled) -> tuple[Task, xr.Dataset | None]:
    """The prompts of an analysis, and a capture of what it says it needs and nothing else."""
    module = analyses.load(name)
    prompts = getattr(module, "TASK", "story")
    task = tasks.make(prompts, tokenizer=bundled.tokenizer, n=PROMPTS, seed=1)
    if "capture" not in inputs.positionals(name):
        return task, None
    declared = {"keep": (), "offsets": (0, 1), "targets": ()}
    options = {one: getattr(module, one.upper(), usual) for one, usual in declared.items()}
    return task, capture(bundled, task, stats=module.NEEDS, **options)


@pytest.fixture(scope="module")
def ran(name: str, bundled, given: tuple[Task, xr.Dataset | None]) -> Any:
    """The result of an analysis, what it reported of its progress, and what it was said to cost."""
    task, held = given
    before = None if held is None else held.copy(deep=True)
    options = getattr(analyses.load(name), "QUICK", {})
    given = {"task": task, "capture": held, "n": PROMPTS, "seed": 1}
    [stated] = cost.estimate([name], bundled, task, options={name: options}, **given)
    told: list[tuple[str, float, float]] = []
    report = {"progress": lambda *step: told.append(step)}
    result = runner.execute(name, bundled, task, options=options, **given, **report)
    if held is not None:
        xr.testing.assert_identical(held, before)
    return result, told, stated


@pytest.fixture(scope="module")
def result(ran: Any) -> xr.Dataset:
    return ran[0]


def test_declaration(name):
    module = analyses.load(name)
    assert module.__doc__
    assert len(analyses.summary(name)) > 1
    assert analyses.summary(name).endswith((".", "?"))
    assert set(module.NEEDS) <= set(statistics.names())
    assert set(inputs.positionals(name)) <= set(inputs.SUPPLIED)
    for option, (default, text, _) in analyses.options(name).items():
        assert type(default) in (bool, int, float, str), f"{option} has no plain default"
        assert len(text) > 10, f"{option} is not described in the docstring of run()"


def test_every_variable_states_what_it_is_and_has_a_view(result):
    shown = viz.variables(result)
    assert shown
    for variable in shown:
        array = result[variable]
        assert array.attrs["long_name"], variable
        assert "units" in array.attrs, variable
        assert array.attrs.get("convention"), f"{variable} does not say how it is measured"
        assert array.attrs["scale"] in SCALES, variable
        assert viz.draw(result, variable).data, variable
        if array.isnull().all():  # too few prompts for it
            continue
        if "low" in array.attrs:
            assert float(array.min()) >= array.attrs["low"] - 1e-6, variable
        if "high" in array.attrs:
            assert float(array.max()) <= array.attrs["high"] + 1e-6, variable


def test_progress_moves_with_the_passes_and_ends_at_its_total(ran, name, bundled):
    _, told, stated = ran
    shares = [done / total if total else 0.0 for _, done, total in told]
    assert {step for step, _, _ in told} == {name}
    assert all(later >= share - 1e-9 for share, later in pairwise(shares))
    assert shares[0] == 0
    assert shares[-1] == 1
    assert all(share < 1 for share in shares[:-1])
    assert stated.passes is not None
    done = told[-2][1] / (bundled.layers * stated.tokens)
    assert (len(told) > 3) == (done > 0)
    if not getattr(analyses.load(name), "QUICK", {}):  # whose options change the passes
        assert stated.passes == pytest.approx(done, rel=0.3, abs=1)


def test_costs_state_the_bytes_of_the_capture_and_of_the_largest_pass(ran, given):
    _, held = given
    stated = ran[2]
    if held is None:
        assert stated.captured == 0
    else:
        arrays = (array for array in held.data_vars.values() if array.dtype == "float32")
        assert stated.captured == sum(array.nbytes for array in arrays)
    assert (stated.memory is None) == (stated.passes == 0)


def test_the_catalogue_states_the_evidence_of_every_analysis(result, name):
    kinds = {
        result[variable].attrs.get("evidence", "correlational")
        for variable in viz.variables(result)
    }
    assert evidence.table().get(name) == sorted(kinds), "mend analyses/_runtime/evidence.json"


def test_intervals_hold_their_estimate(result):
    for variable in viz.variables(result):
        lower, upper = viz.interval(result, variable)
        if lower is None:
            continue
        known = result[variable].notnull()
        assert bool((lower <= upper + 1e-9).where(known, True).all()), variable
        assert lower.attrs["interval_of"] == variable
        assert 0 < lower.attrs["level"] < 1


@pytest.mark.requirement("A13")
def test_every_head_type_has_a_stage_and_a_method(result, name):
    for kind in result.attrs.get("heads_by_type", {}):
        assert kind.replace("_", "-") in taxonomy.TERMS or name in taxonomy.NAMED_BY, kind
        term = taxonomy.term(name, kind)
        assert term.stage in (*taxonomy.STAGES, taxonomy.NO_STAGE), kind
        assert term.way == taxonomy.METHODS[term.method][1], kind


def test_provenance(result, name):
    attrs = result.attrs
    assert attrs["analysis"] == name
    assert attrs["title"] == analyses.summary(name)
    assert set(json.loads(attrs["options"])) == set(analyses.options(name))
    assert {*FIELDS, "convention"} <= set(attrs)
    json.dumps(attrs)


def test_what_is_declared_is_an_option_or_a_kind_of_model(name):
    module = analyses.load(name)
    assert set(getattr(module, "QUICK", {})) <= set(analyses.options(name))
    assert getattr(module, "SUPPORTS", set()) <= {"encoder", "cross", "vision", "hybrid", "sigmoid"}
    assert module.NEEDS == () or "capture" in inputs.positionals(name)


def test_unknown_option_is_refused(name, bundled):
    check_refusal("no_such_option", runner.execute, name, bundled, options={"no_such_option": 1})


def test_a_prompt_of_one_token_has_a_result_or_a_refusal(name):
    if hasattr(analyses.load(name), "TASK"):
        pytest.skip("it runs on the prompts of a task")
    with suppress(HeadscopeError):
        assert viz.variables(runner.execute(name, constructed.random_llama(), [[5]]))


def test_what_a_capture_lacks_is_named(name, bundled, given):
    task, held = given
    module = analyses.load(name)
    if held is None:
        pytest.skip("it makes its captures itself")
    supplied = {"model": bundled, "prompts": task, "task": task, "sae": None}
    for lacking in (*module.NEEDS, *getattr(module, "KEEP", ())):
        supplied["capture"] = held.drop_vars(lacking)
        with pytest.raises(HeadscopeError, match=rf"^capture: .*\b{lacking}\b"):
            module.run(*(supplied[parameter] for parameter in inputs.positionals(name)))

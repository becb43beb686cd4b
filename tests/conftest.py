"""What every test of the suite shares: the table of requirements and the bundled model."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

# Set before transformers is imported: no test may reach a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor may one trust, or write, what the user's cache says of a model.
os.environ["HEADSCOPE_CHECK"] = "always"

import pytest
import torch
from jaxtyping import config
from signatures import check_calls

ROOT = Path(__file__).parents[1]

# Shapes and types of every call inside kernels are checked against its signature. Triton compiles
# the source of its kernels, which therefore cannot be wrapped.
check_calls(
    [
        f"headscope.kernels.{name}"
        for name in (
            *(module.stem for module in sorted((ROOT / "kernels").glob("*.py"))),
            *("compiled", "gradients", "panels", "statistics"),
        )
    ]
)

# OpenMP inside small operations collapses where two processes share two cores.
torch.set_num_threads(1)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headscope.probes.models.model import Model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write", action="store_true", help="write the tables that tests make")
    parser.addoption("--requirements", action="store_true", help="print row -> passing tests")


class RequirementTable:
    """Collect, per required row, the tests that passed."""

    def __init__(self) -> None:
        self.rows: dict[str, Counter[str]] = defaultdict(Counter)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):
        report = (yield).get_result()
        if report.when == "call" and report.passed:
            for mark in item.iter_markers("requirement"):
                for row in mark.args:
                    self.rows[row][item.nodeid.partition("[")[0]] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("requirements")
        for row in sorted(self.rows, key=lambda name: (name[0], int(name[1:]))):
            for test, cases in self.rows[row].items():
                many = f"  ({cases} cases)" if cases > 1 else ""
                terminalreporter.write_line(f"{row:4} {test}{many}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--requirements"):
        config.pluginmanager.register(RequirementTable(), "requirement-table")


@pytest.fixture(autouse=True)
def signatures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let wrong shapes through to the errors that users meet, in tests marked so."""
    unchecked = request.node.get_closest_marker("unchecked_signatures") is not None
    config.update("jaxtyping_disable", unchecked)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def bundled() -> Model:
    from headscope.probes import load_model

    return load_model("headscope/bundled")


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of the bundled model with three analyses; read it, do not change it."""
    from headscope.app.pipeline import analyze_run, capture_run

    folder = tmp_path_factory.mktemp("runs") / "demo"
    run = capture_run(folder, "headscope/bundled", task="story", number=3, seed=1)
    options = {"head_types": {"draws": "1"}}
    outcome = analyze_run(run, ("sinks", "head_types", "importance"), number=3, options=options)
    assert set(run.results()) == set(outcome)
    return folder


@pytest.fixture(scope="session")
def first_words(bundled: Model) -> str:
    """A few words that the bundled model knows."""
    from headscope.probes.prompts import tasks
    from headscope.probes.prompts.writing import split

    (prompt,) = tasks.make("story", tokenizer=bundled.tokenizer, n=1).prompts
    return " ".join(split(prompt.clean)[:4])


@pytest.fixture(scope="session")
def paired_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with random weights and a tokenizer of 60 words, saved as any user would."""
    import architectures
    import transformers
    from tokenizers_of_text import word_level

    vocabulary = ["<pad>", "</s>", "<unk>", *(f"w{at}" for at in range(61))]
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    torch.manual_seed(3)
    module = transformers.T5ForConditionalGeneration(transformers.T5Config(**architectures.T5))
    with torch.no_grad():
        for name, weight in module.named_parameters():
            # The initial weights are small, so that attention is all but uniform.
            if name.endswith(("Attention.q.weight", "relative_attention_bias.weight")):
                weight.mul_(4.0)
    folder = tmp_path_factory.mktemp("paired")
    module.save_pretrained(folder)
    word_level(vocabulary, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def paired_runs(paired_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the tiny T5, ``cross``, ``decoder`` and ``encoder``, each with sinks; read only."""
    from headscope.app.pipeline import analyze_run, capture_run

    place = tmp_path_factory.mktemp("paired_runs")
    prompts = place / "pairs.jsonl"
    prompts.write_text(
        '{"source": "w1 w2 w3 w4 w5 w6 w7", "target": "w9 w8 w7"}\n'
        '{"source": "w11 w12 w13", "target": "w19 w18 w17 w16 w15"}\n'
    )
    for attention in ("cross", "decoder", "encoder"):
        folder = place / attention
        run = capture_run(folder, str(paired_folder), prompts=prompts, attention=attention)
        outcome = analyze_run(run, ("sinks",), options={"sinks": {"least_queries": "1"}})
        assert set(run.results()) == set(outcome)
    return place

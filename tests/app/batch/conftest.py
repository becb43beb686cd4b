"""What the tests of batches share."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from headscope.app.batch.job import Job
from headscope.app.batch.job_file import read_job
from headscope.app.batch.state import LOG

THREE_BY_THREE = """\
models: [headscope/bundled, headscope/induction@step400, headscope/induction]
tasks: [induction, ioi, recall]
number: 4
analyses: all
options: {sae_circuits: {epochs: 5}, position_bias: {draws: 1}, preplan_anchor: {shifts: 20}}
"""


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """Digest every file of a batch but its log, by its place."""

    def of(folder: Path) -> dict[str, str]:
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != LOG
        }

    return of


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, bundled) -> Path:
    """A Llama of two layers with random weights and the words of the bundled model."""
    config = transformers.LlamaConfig(
        vocab_size=bundled.module.config.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("models") / "small"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    bundled.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], Job]:
    """Read a job from its text."""

    def of(text: str) -> Job:
        (tmp_path / "job.yaml").write_text(text)
        return read_job(tmp_path / "job.yaml")

    return of


@pytest.fixture
def two_by_two(job: Callable[[str], Job], small: Path) -> Job:
    """Two models, two tasks, two analyses."""
    return job(
        f"models: [headscope/bundled, {{model: '{small}', name: small}}]\n"
        "tasks: [induction, ioi]\nnumber: 3\nanalyses: [sinks, entropy]\n"
        "options: {sinks: {least_queries: 1}}\n"
    )


@pytest.fixture
def three_by_three(job: Callable[[str], Job]) -> Job:
    """Every analysis on three tasks, of a bundled model and two checkpoints of another."""
    return job(THREE_BY_THREE)

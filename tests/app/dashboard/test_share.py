"""The Python that a view offers runs as it is printed, and computes what is shown."""

import ast
from functools import partial
from typing import Any

import numpy as np
import pytest

from headscope.probes import capture, pattern
from headscope.probes.storage import run_folder
from headscope.viz.component.view import View


@pytest.fixture
def screen(demo_run, dashboard):
    return partial(dashboard, demo_run, layer="2", head="5")


def computed(app) -> Any:
    """Run the lines, and return what the last one is."""
    *lines, last = ast.parse(app.main.code[1].value).body
    names: dict[str, Any] = {}
    exec(compile(ast.Module(lines, []), "share", "exec"), names)
    return eval(compile(ast.Expression(last.value), "share", "eval"), names)


def whole(bundled, prompt):
    return pattern(capture(bundled, [prompt], stats=("lse",), keep=("q", "k")), 2, 5)


def test_a_prompt_of_the_run_and_a_text_of_ones_own(screen, demo_run, bundled, first_words):
    read = run_folder.open(demo_run).prompts()
    expected = whole(bundled, read[1])
    np.testing.assert_allclose(computed(screen(prompt="1")), expected, atol=1e-6)
    expected = whole(bundled, first_words)
    np.testing.assert_allclose(computed(screen(text=first_words)), expected, atol=1e-6)


def test_a_long_text_whole_and_its_window(screen, bundled, first_words):
    text = " ".join([first_words] * 150)
    assert len(bundled.encode(text)) > 512
    shown = computed(screen(text=text))
    assert isinstance(shown, View)
    assert shown.kind == "long_view"
    window = computed(screen(text=text, queries="300-427", keys="10-99"))
    exact = whole(bundled, text).values[300:428, 10:100]
    np.testing.assert_allclose(window, exact, atol=1e-6)

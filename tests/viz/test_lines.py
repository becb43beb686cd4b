"""Lines over checkpoints, over removed heads and over the edges of circuits."""

import numpy as np
import pytest
import xarray as xr
from view_arrays import HEADS, LAYERS, array

from headscope import viz


def grown(*sizes: tuple[str, int]) -> xr.DataArray:
    steps = {"step": ("checkpoint", [0, 100, 800]), "checkpoint": ["step0", "step100", "last"]}
    return array(("checkpoint", 3), *sizes).assign_coords(steps)


def test_lines_stand_at_their_steps_and_name_heads_and_checkpoints():
    data = grown(LAYERS, HEADS)
    data[1, 2, 3] = np.nan
    figure = viz.choose(data).figure(data, lower=data - 0.1, upper=data + 0.1)
    line = figure.data[11]
    assert (line.name, line.x) == ("L2H3", (0.0, 100.0, 800.0))
    assert line.y[1] is None
    value = float(data[2, 2, 3])
    assert line.hovertext[2] == (
        f"<b>L2H3</b><br>step 800 (last)<br>Some score: {value:.3f} share<br>"
        f"95 % interval {value - 0.1:.3f} to {value + 0.1:.3f}"
    )
    assert line.hovertext[1].endswith("Some score: not measured")
    assert "gaps: not measured" in figure.layout.title.subtitle.text
    assert figure.layout.xaxis.title.text == "training step"


def test_a_few_lines_have_bands_and_of_many_those_that_change_are_drawn():
    few = grown(("condition", 2))
    figure = viz.choose(few).figure(few, lower=few - 0.1, upper=few + 0.1)
    assert [trace.fill for trace in figure.data] == [None, None, "toself", "toself"]
    band = [*(few[:, 0] + 0.1).values, *(few[::-1, 0] - 0.1).values]
    assert figure.data[2].y == pytest.approx(band)
    many = grown(("layer", 6), ("head", 8)) * 0 + 0.5
    many[2, 4, 7] = 0.9
    figure = viz.choose(many).figure(many)
    assert len(figure.data) == 24
    assert "L4H7" in {trace.name for trace in figure.data}
    assert "24 of 48: those that change most" in figure.layout.title.subtitle.text
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 24


def test_the_picked_line_is_drawn_and_stands_out_of_many():
    many = grown(("layer", 6), ("head", 8))
    many[:, 5, 0] = 0.5
    assert "L5H0" not in {trace.name for trace in viz.choose(many).figure(many).data}
    lines = {trace.name: trace for trace in viz.choose(many).figure(many, picked="L5H0").data}
    assert len(lines) == 24
    assert [name for name, line in lines.items() if line.opacity == 1] == ["L5H0"]
    assert [name for name, line in lines.items() if line.line.width == 4] == ["L5H0"]


def test_circuits_of_few_and_of_many_edges_lie_apart():
    data = array(("order", 2), ("circuit_edges", 3)).assign_coords(
        order=["eap_ig", "random"], circuit_edges=[10, 1000, 100000]
    )
    figure = viz.choose(data).figure(data)
    assert figure.layout.xaxis.type == "log"
    assert list(figure.data[0].x) == [10, 1000, 100000]
    assert "1000 edges" in figure.data[1].hovertext[1]


def test_lines_run_along_removed_heads():
    data = array(("order", 2), ("removed", 3)).assign_coords(
        order=["greedy", "random"], removed=[0, 8, 20]
    )
    figure = viz.choose(data).figure(data, lower=data - 0.1, upper=data + 0.1)
    assert [trace.name for trace in figure.data[:2]] == ["greedy", "random"]
    assert figure.data[0].x == (0, 8, 20)
    assert figure.data[0].y == pytest.approx(data[0].values)
    assert figure.layout.xaxis.title.text == "heads removed"
    assert "8 removed" in figure.data[1].hovertext[1]

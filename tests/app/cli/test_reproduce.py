"""``headscope reproduce``: published circuits as data, and the table beside a model at hand."""

import json

import pytest
from typer.testing import CliRunner

from headscope.analyses.comparison import published
from headscope.app.cli import app, console
from headscope.app.cli.main import main
from headscope.probes import constructed
from headscope.probes.constructed.known_circuit import Edge

MODEL = "headscope/constructed-ioi"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal that no row of a table is wrapped in."""
    monkeypatch.setattr(console.out, "_width", 240)


def record():
    """The circuit of a constructed model, as a file of one's own holds it."""
    held = constructed.module(MODEL)
    groups = {role: [f"L{a}H{b}" for a, b in heads] for role, heads in held.ROLES.items()}
    nodes = {node: node for edge in held.EDGES for node in edge[:2]}
    return {
        "about": "A constructed circuit", "model": MODEL, "task": held.TASK,
        "options": held.OPTIONS, "metric": held.METRIC, "sources": ["its own weights"],
        "groups": groups | {name: [name] for name in nodes},
        "connections": [[*edge] for edge in held.EDGES],
        "published": [{"row": "intact", "value": 9.64, "source": "2 · 5 · tanh 2"}],
    }  # fmt: skip


def test_published_circuits_have_the_heads_and_edges_of_their_papers():
    ioi, greater, docstring = map(published.circuit, ("ioi", "greater_than", "docstring"))
    assert len(ioi.heads) == 26
    assert {head for role, heads in ioi.roles.items() for head in heads} >= {"L9H0", "L9H9"}
    assert (11, 3) not in ioi.heads
    assert greater.heads == (
        (0, 1), (0, 3), (0, 5), (5, 5), (6, 1), (6, 9), (7, 10), (8, 11), (9, 1),
    )  # fmt: skip
    assert docstring.heads == ((0, 5), (1, 2), (1, 4), (2, 0), (3, 0), (3, 6))
    # Of the 37 edges of the manual graph, 13 lead from an input of a head to the head itself.
    assert len(docstring.edges) == 37 - 13
    assert Edge("L8H6", "L9H9", "q") in ioi.edges
    # No head reads one of its own layer or of a later one, and S-inhibition is read by queries.
    assert not [edge for edge in ioi.edges if edge[:2] == ("L10H0", "L9H9")]
    assert {edge.input for edge in ioi.edges if edge.source == "L7H3"} == {"q"}
    assert ("L9H1", "L9.mlp") in {edge[:2] for edge in greater.edges}
    assert len(published.circuit("tracr_reverse").edges) == 10
    assert len(published.circuit("tracr_proportion").edges) == 5


def test_a_circuit_of_ones_own_is_measured(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(record()))
    assert published.circuit(file).heads == constructed.module(MODEL).HEADS
    assert set(published.circuit(file).edges) == set(constructed.module(MODEL).EDGES)
    done = CliRunner().invoke(app, ["reproduce", str(file), "--number", "8", "--coded", "10"])
    assert done.exit_code == 0, done.output
    rows = {
        cells[0]: cells[1:]
        for line in done.stdout.splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")[1:-1]]) > 3
    }
    assert rows["intact"][:2] == ["9.64", "9.64"]
    # The circuit does the whole task, and nothing is left without it.
    assert rows["circuit alone"][1] == "9.64"
    assert abs(float(rows["without the circuit"][1].replace("−", "-"))) < 0.01
    assert float(rows["without name mover"][1].replace("−", "-")) < 0.01
    assert 0.5 < float(rows["node AUC, discrete SAE"][1]) <= 1


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("ioi", "needs openai-community/gpt2, which is not on this machine"),
        ("greater_than", "needs openai-community/gpt2, which"),
        ("docstring", "give --model a folder of it written by save_pretrained"),
        ("retrieval", "needs yaofu/llama-2-7b-80k or "),
        ("sinks", "needs openai-community/gpt2-xl or "),
        ("tracr_reverse", "its model is compiled"),
        ("nothing", "nothing cannot be read; give one of the shipped names"),
    ],
)
def test_what_is_not_available_is_reported_in_one_line(what, wanted, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["headscope", "reproduce", what])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    output = capsys.readouterr().err
    assert wanted in output
    assert output.count("\n") == 1


def test_a_model_without_the_heads_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["headscope", "reproduce", "ioi", "--model", MODEL])
    with pytest.raises(SystemExit):
        main()
    assert "headscope/constructed-ioi has no L0H10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "name", "wanted"),
    [
        ("retrieval", "headscope/bundled", "headscope/bundled: heads above 0.1, %"),
        ("sinks", "headscope/bundled-python", "headscope/bundled-python: random tokens, %"),
    ],
)
def test_another_model_stands_beside_those_of_the_paper(what, name, wanted):
    done = CliRunner().invoke(app, ["reproduce", what, "--model", name, "--number", "4"])
    assert done.exit_code == 0, done.output
    (row,) = [line.split("│")[1:-1] for line in done.stdout.splitlines() if wanted in line]
    assert row[1].strip() == ""
    assert 0 < float(row[2]) < 100


def test_a_broken_record_is_refused(tmp_path):
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(record() | {"connections": [["nobody", "logits", ""]]}))
    with pytest.raises(Exception, match="no group 'nobody'"):
        published.circuit(file)

"""The report: one file that needs nothing else, whole or not there."""

import base64
import gzip
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from refusals import check_message, check_refusal

from headscope import analyses, viz
from headscope.analyses._runtime import taxonomy
from headscope.app.report import build, docstrings, sections
from headscope.probes.storage import run_folder
from headscope.probes.storage.run_folder import REPORT, Run

KEYS = {"model", "revision", "run", "name", "layer", "head"}
LOADS = {"src", "href", "data", "action", "poster", "srcset"}


class Reader(HTMLParser):
    """Collect what a page loads, its figures and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.packed: dict[str, str] = {}
        self.ids: list[str] = []
        self.scripts = 0
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        result = dict(attrs)
        self.loads += [str(value) for name, value in attrs if name in LOADS]
        if result.get("id"):
            self.ids.append(str(result["id"]))
        self._inside = str(result["id"]) if result.get("type") == "application/gzip" else tag
        self.scripts += self._inside == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in {"plotly", "figure-data"}:
            self.packed[self._inside] = gzip.decompress(base64.b64decode(data)).decode()
        elif self._inside not in {"script", "style"}:
            self.text += data + " "

    @property
    def figures(self) -> dict[str, object]:
        """The figures by name."""
        return json.loads(self.packed["figure-data"])


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def written(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.write_report(run_folder.open(demo_run), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written: Path) -> Reader:
    return read(written)


def test_the_page_loads_nothing_but_the_files_beside_it(page):
    inner = {link for link in page.loads if link.startswith("#")}
    assert set(page.loads) - inner == set(REPORT) - {"report.html"}
    assert {link[1:] for link in inner} <= set(page.ids)


def test_the_page_holds_plotly_once_and_compressed(written, page):
    text = written.read_text(encoding="utf-8")
    assert page.packed["plotly"].count("plotly.js v") == 1
    assert "plotly.js v" not in text
    assert page.scripts == 1
    assert len(text) < 3_000_000


def test_the_same_results_give_the_same_page(demo_run):
    run = run_folder.open(demo_run)
    first, second = (build.html(run.manifest, run.results(), "demo") for _ in range(2))
    assert first == second


def test_every_variable_is_shown_once_importance_first(page, demo_run):
    results = run_folder.open(demo_run).results()
    shown = [token for token in page.ids if token in analyses.names()]
    assert sorted(shown) == sorted(results)
    assert shown[0] == "importance"
    expected = {
        f"{name}-{key}"
        for name in shown
        for key in viz.variables(results[name])
        if results[name][key].ndim
    }
    assert set(page.figures) == expected
    assert sorted(token for token in page.ids if token in expected) == sorted(expected)


@pytest.mark.requirement("A13")
def test_the_types_that_heads_have_stand_there_with_stage_evidence_and_method(page, demo_run):
    text = " ".join(page.text.split())
    rows = text.partition("Type Stage Evidence Method Heads")[2]
    named: dict[str, set[str]] = {}
    for name, result in run_folder.open(demo_run).results().items():
        for key, heads in result.attrs.get("heads_by_type", {}).items():
            kind = key.replace("_", "-")
            placed = taxonomy.term(name, key)
            evidence, way = taxonomy.METHODS[placed.method]
            title = kind if kind in taxonomy.TERMS else f"{key} ({name})"
            row = f" {title} {placed.stage} (placed by {placed.placed_by}) {evidence} {way} "
            named.setdefault(row, set()).update(heads)
    for row, heads in named.items():
        assert (row in rows) == bool(heads)
        assert all(head in rows.partition(row)[2] for head in heads)
    assert sum(map(bool, named.values())) > 2


def test_text_findings_and_provenance_are_there(page, demo_run):
    run = run_folder.open(demo_run)
    text = " ".join(page.text.split())
    assert analyses.summary("sinks").rstrip(".") in text
    assert "Gu et al., When Attention Sink Emerges" in text
    assert run.manifest["prompts_sha256"] in text
    assert run.manifest["revision"] in text
    assert str(run.results()["head_types"].attrs["note"])[:60] in text
    assert "epsilon" in text
    sink = run.results()["sinks"]["sink"]
    layer, head = np.unravel_index(int(np.argmax(sink.values)), sink.shape)
    score = text.index("Weight parked on the first token")
    assert text.index(f"L{layer}H{head}", score) == text.index("L", text.index("L", score))


def test_a_task_is_described_by_its_register_and_what_was_drawn_again(demo_run):
    manifest = dict(run_folder.open(demo_run).manifest)
    assert "3 prompts (story, plain register) at" in build._origin(manifest)
    again = build._origin(manifest | {"redrawn": 2})
    assert "(story, plain register, 2 others drawn that its tokenizer does not allow)" in again


def test_tables_hold_the_results(written, demo_run):
    results = run_folder.open(demo_run).results()
    parquet = pd.read_parquet(written.with_name("heads.parquet"))
    csv = pd.read_csv(written.with_name("heads.csv"))
    pd.testing.assert_frame_equal(parquet, csv, check_exact=False)
    sink = results["sinks"]["sink"]
    row = parquet.set_index("name").loc["L2H3"]
    assert row["sinks.sink"] == pytest.approx(float(sink.sel(layer=2, head=3)))
    result = json.loads(written.with_name("report.json").read_text(encoding="utf-8"))
    stored = result["analyses"]["sinks"]["variables"]["sink"]
    np.testing.assert_allclose(stored["values"], sink.values)
    assert stored["attrs"]["units"] == sink.attrs["units"]
    assert result["run"]["prompts_sha256"] == result["analyses"]["sinks"]["attrs"]["prompts_sha256"]
    assert {finding["analysis"] for finding in result["findings"]} >= {"sinks", "head_types"}
    long = pd.read_parquet(written.with_name("scores.parquet"))
    rows = long[(long["analysis"] == "sinks") & (long["variable"] == "sink")].set_index("name")
    assert rows.loc["L2H3", "value"] == row["sinks.sink"]
    schema = json.loads(written.with_name("heads.schema.json").read_text(encoding="utf-8"))
    assert set(parquet.columns) == {*schema["columns"], *KEYS}


def fake(tmp_path: Path, result: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> Run:
    manifest = {"model": "m</script><script>alert(1)</script>", "architecture": "A"}
    manifest |= dict.fromkeys(("revision", "n_prompts", "created", "headscope"), "x")
    monkeypatch.setattr(Run, "results", lambda self: {"mine": result} if result else {})
    return Run(tmp_path, manifest)


def test_groups_of_bars_are_a_table_with_their_intervals():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(2, 3))
    value[1, 2] = np.nan
    named = {"task": ["ioi", "recall"], "explainer": ["Rollout", "LRP", "random"]}
    about = {"long_name": "Answer regained", "units": "share", "scale": "diverging"}
    parts = {"insertion": value, "insertion_lower": value - 1, "insertion_upper": value + 1}
    result = xr.Dataset(
        {name: (tuple(named), values, about) for name, values in parts.items()}, named
    )
    for end in ("lower", "upper"):
        result[f"insertion_{end}"].attrs["interval_of"] = "insertion"
    [table] = sections.section("own", result)["tables"]
    assert table["head"] == ["explainer", "ioi", "recall"]
    assert table["title"] == "Answer regained, share"
    for at, (label, cells) in enumerate(table["rows"]):
        assert label == named["explainer"][at]
        number = float(value[0, at])
        ends = f"[{viz.amount(number - 1)}, {viz.amount(number + 1)}]"
        assert cells[0] == (viz.amount(number), ends)
    assert table["rows"][2][1][1] == ("–", "")
    without = result.drop_vars(["insertion_lower", "insertion_upper"])
    assert sections.section("own", without)["tables"] == []


def test_the_page_has_the_intervals_of_every_method_on_every_task(tmp_path, monkeypatch):
    value = np.array([[0.25, 0.5], [0.125, 0.75]])
    named = {"task": ["ioi", "recall"], "explainer": ["Rollout", "LRP"]}
    parts = {"insertion": value, "insertion_lower": value - 1, "insertion_upper": value + 2}
    result = xr.Dataset({name: (tuple(named), values) for name, values in parts.items()}, named)
    for end in ("lower", "upper"):
        result[f"insertion_{end}"].attrs["interval_of"] = "insertion"
    path = build.write_report(fake(tmp_path, result, monkeypatch))
    text = " ".join(read(path).text.split())
    assert "LRP 0.500 [-0.500, 2.50] 0.750 [-0.250, 2.75]" in text


def test_nothing_is_written_where_a_file_cannot_be(tmp_path, monkeypatch):
    run = fake(tmp_path, xr.Dataset({"x": xr.DataArray(1.0)}), monkeypatch)
    (tmp_path / "heads.parquet").mkdir()
    check_message(r"heads\.parquet cannot be written", build.write_report, run)
    leftovers = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert [name for name in leftovers if "tmp" in name] == []
    check_message("cannot be written", build.write_report, run, tmp_path / "no such folder")
    assert not (tmp_path / "no such folder").exists()


def test_a_run_without_results_is_refused(tmp_path, monkeypatch):
    check_refusal("run", build.write_report, fake(tmp_path, xr.Dataset(), monkeypatch))
    assert list(tmp_path.iterdir()) == []


def test_names_of_others_cannot_become_code(tmp_path, monkeypatch):
    evil = "</script><script>alert(2)</script>"
    array = xr.DataArray(
        [0.5, 0.2], dims="condition", coords={"condition": [evil, "b"]},
        attrs={"long_name": evil, "units": evil, "convention": evil},
    )  # fmt: skip
    result = xr.Dataset({"x": array}, attrs={"title": evil, "note": evil, "skipped": evil})
    page = read(build.write_report(fake(tmp_path, result, monkeypatch)))
    assert page.scripts == 1
    assert len(page.figures) == 1


def test_what_is_missing_is_reported_and_null_in_json(tmp_path, monkeypatch):
    grid = xr.DataArray([[0.5, np.nan]], dims=("layer", "head"), attrs={"units": "share"})
    notes = {"verdict": "disagreement", "note": "The two differ.", "skipped": "no tokenizer"}
    result = xr.Dataset({"x": grid}, attrs=notes)
    path = build.write_report(fake(tmp_path, result, monkeypatch))
    page = path.read_text(encoding="utf-8")
    text = page[page.index("<section") : page.index("</section")]
    assert text.count('class="note warn"') == 2
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored["analyses"]["mine"]["variables"]["x"]["values"] == [[0.5, None]]


def test_docstrings_become_prose():
    summary, text = docstrings.render(
        """Summary on
        two lines.

        A ``literal < x`` and *stars*.

        - first
        - second
          goes on

        Notes
        -----
        A note.

        Sources: One & Two.
        """
    )
    assert summary == "Summary on two lines."
    assert text.splitlines() == [
        "<p>A <code>literal &lt; x</code> and *stars*.</p>",
        "<ul><li>first</li><li>second goes on</li></ul>",
        "<h5>Notes</h5>",
        "<p>A note.</p>",
        '<p class="source"><b>Sources</b> One &amp; Two.</p>',
    ]

"""Pages of the site that are made when it is built (`make docs`), and the links between them."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

ROOT = Path(__file__).parents[1]
# The repository root must not be importable: its kernels/ folder would hide Hugging Face's package.
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "benchmarks")]

import reference
import tables
from mkdocs.structure.files import File, Files

from headscope import analyses

# Files of the repository that are pages of the site, and where.
SOURCES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
SOURCES |= {
    f"probes/bundled/{path.parent.name}/README.md": f"models/{path.parent.name}.md"
    for path in sorted(ROOT.glob("probes/bundled/*/README.md"))
}
FOLDERS = {"benchmarks/results": "benchmarks.md", "notebooks": "notebooks/sinks.md"}
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def generated() -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield every generated page, with the function that makes it."""
    yield "reference/analyses/index.md", reference.analyses_page
    for family in analyses.families():
        yield f"reference/analyses/{family}.md", lambda family=family: reference.family_page(family)
    yield "reference/statistics.md", tables.statistics_page
    yield "reference/head-types.md", tables.head_types_page
    yield "reference/tasks.md", reference.tasks_page
    yield "reference/edits.md", reference.edits_page
    yield "reference/cli.md", reference.commands_page
    yield "benchmarks.md", tables.benchmarks_page
    for source in SOURCES:
        yield SOURCES[source], lambda source=source: moved(source)
    for path in NOTEBOOKS:
        yield f"notebooks/{path.stem}.md", lambda path=path: notebook(path)


def moved(source: str) -> str:
    """Read a page of the repository, its links pointing to where their targets are on the site."""
    target = SOURCES[source]

    def link(match: re.Match[str]) -> str:
        to = relpath(str((ROOT / source).parent / match[1]), str(ROOT))
        to = {**SOURCES, **FOLDERS}.get(to) or to.removeprefix("docs/").replace(".ipynb", ".md")
        return relpath(to, dirname(target) or ".")

    return LINK.sub(link, (ROOT / source).read_text(encoding="utf-8"))


def notebook(path: Path) -> str:
    """Write a notebook as a page: its text, its code and what its cells showed."""
    parts = ["---\nsearch:\n  boost: 0.5\n---"]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            if "image/png" in output["data"]:
                picture = "".join(output["data"]["image/png"]).strip()
                parts.append(f"![](data:image/png;base64,{picture})")
            else:
                parts.append(f"```text\n{''.join(output['data']['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n"


def on_config(config: Any) -> Any:
    """List the pages of the registries in the navigation."""
    lists = {
        "Analyses": [
            "reference/analyses/index.md",
            *(
                {reference.title(family): f"reference/analyses/{family}.md"}
                for family in analyses.families()
            ),
        ],
        "Bundled models": [page for page in SOURCES.values() if page.startswith("models/")],
        "Notebooks": [
            {path.stem.replace("_", " ").capitalize(): f"notebooks/{path.stem}.md"}
            for path in NOTEBOOKS
        ],
    }
    fill(config.nav, lists)
    return config


def fill(nav: list[Any], lists: dict[str, list[Any]]) -> None:
    """Replace the empty sections of the navigation."""
    for entry in nav:
        for name, below in entry.items() if isinstance(entry, dict) else ():
            if name in lists:
                entry[name] = lists[name]
            elif isinstance(below, list):
                fill(below, lists)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for uri, make in generated():
        files.append(File.generated(config, uri, content=make()))
    return files

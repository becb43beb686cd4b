"""Page: the HTML that a report is made of, in one file that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --line: #d8dde5;
  --paper: #ffffff; --tint: #f4f6f9; --link: #1f5fa8; --warn: #b65a00; --warn-tint: #fdf3e7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #a3adba; --line: #39424f;
  --paper: #14181f; --tint: #1d232c; --link: #85b4dd; --warn: #f2ac60; --warn-tint: #33261a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .6rem; padding-top: 1rem;
  border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; } h4 { margin: 1rem 0 .2rem; }
p { max-width: 46rem; margin: .5rem 0; } .lead, .source, figcaption { color: var(--soft); }
.source, figcaption, table, nav { font-size: .9rem; }
a { color: var(--link); } nav ul { columns: 2; padding-left: 1.1rem; } nav li { margin: .15rem 0; }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--tint);
  padding: .1em .3em; border-radius: 3px; }
.note { max-width: 46rem; padding: .6rem .9rem; margin: .9rem 0; border-left: 4px solid var(--link);
  background: var(--tint); }
.note.warn { border-color: var(--warn); background: var(--warn-tint); }
figure { margin: 1.4rem 0 0; } figcaption { max-width: 60rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { color: var(--soft); display: block; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.card { flex: 1 1 14rem; max-width: 20rem; border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; } .card b { display: block; font-size: 1.15rem; }
.card small { color: var(--soft); display: block; }
summary { cursor: pointer; color: var(--link); margin: .8rem 0; }
@media print { details > * { display: block; } h2 { break-before: page; } }
"""

# The text of the figures takes the ink of the page, light or dark.
SCRIPT = """
const {color, fontFamily} = getComputedStyle(document.body);
for (const place of document.querySelectorAll('.plot')) {
  const figure = JSON.parse(place.querySelector('script').textContent);
  figure.layout.font = {...figure.layout.font, color, family: fontFamily};
  place.style.minHeight = figure.layout.height + 'px';
  Plotly.newPlot(place, figure.data, figure.layout, {displaylogo: false, responsive: true,
    toImageButtonOptions: {filename: place.id, scale: 2}});
}
"""


def page(title: str, body: Iterable[str], plotly: str = "", beside: str = "") -> str:
    """Return the whole file: style, body, and what draws its figures where it has any.

    plotly.js is in the file (``plotly``), or a file beside it (``beside``) that pages share.
    """
    drawing = (
        "<noscript><p class='note warn'>The figures need JavaScript; the tables do not."
        "</p></noscript>",
        f'<script src="{html.escape(beside)}"></script>'
        if beside
        else f"<script>{plotly}</script>",
        f"<script>{SCRIPT}</script>",
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            *body,
            *(drawing if plotly or beside else ()),
            "</body>\n</html>\n",
        ]
    )


def plot(name: str, figure: Any, alt: str, caption: str) -> str:
    """Return the place of a figure, with its data inside and its caption (HTML) below."""
    # A closing tag inside a text would end the script element.
    data = figure.to_json().replace("</", "<\\/")
    return (
        f'<figure><div class="plot" id="{html.escape(name)}" role="img" '
        f'aria-label="{html.escape(alt)}"><script type="application/json">{data}</script></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table of HTML cells; the last ``numbers`` columns line up as numbers."""
    first = len(head) - numbers
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = (
        "".join(
            f'<td class="number">{cell}</td>' if at >= first else f"<td>{cell}</td>"
            for at, cell in enumerate(row)
        )
        for row in rows
    )
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def pairs(values: Mapping[str, object]) -> str:
    """Return a table of names and values."""
    rows = (
        (
            f"<code>{html.escape(str(name))}</code>",
            html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)),
        )
        for name, value in values.items()
    )
    return table(("name", "value"), rows)


def note(text: str, warn: bool = False) -> str:
    """Return a remark (HTML) that stands out; a warning more so."""
    return f'<p class="note{" warn" if warn else ""}">{text}</p>'


def folded(title: str, inside: str) -> str:
    """Return a part that opens on a click."""
    return f"<details><summary>{html.escape(title)}</summary>{inside}</details>"

"""HTML pages from the templates of this folder, in one file that needs nothing else."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headscope import viz
from headscope.app.report.docstrings import inline

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters["inline"] = inline
ENVIRONMENT.filters["amount"] = viz.amount
ENVIRONMENT.filters["as_text"] = lambda value: (
    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
)


class Figure(NamedTuple):
    """A figure of a page: its id, its data, and what is said about it."""

    name: str
    data: Markup
    alt: str
    caption: Markup


def figure(name: str, result: xr.Dataset, variable: str, alt: str, caption: Markup) -> Figure:
    """Draw a variable of a result for a page."""
    # A closing tag inside a text would end the script element.
    data = str(viz.draw(result, variable).to_json()).replace("</", "<\\/")
    return Figure(name, Markup(data), alt, caption)


def render(template: str, title: str, plotly_address: str | None = None, **context: Any) -> str:
    """Fill in a template of this folder, which names what is in the context.

    ``plotly_address`` is that of a plotly.js that pages share; "" is a page without figures, and
    with None the page holds the library itself.
    """
    plotly = ""
    if plotly_address is None:
        from plotly.offline import get_plotlyjs

        plotly = Markup(get_plotlyjs())
    page = ENVIRONMENT.get_template(f"{template}.html.j2")
    return page.render(title=title, plotly=plotly, plotly_address=plotly_address, **context)


def sentences(parts: list[Markup]) -> Markup:
    """Join sentences, with or without their stops."""
    return Markup(". ").join(part.rstrip(".") for part in parts)


def is_doubtful(result: xr.Dataset) -> bool:
    """Tell whether a result contradicts another number, rests on too little, or lacks a part."""
    doubtful = result.attrs.get("verdict") in ("disagreement", "too_few")
    return doubtful or "WARNING" in str(result.attrs.get("note", ""))

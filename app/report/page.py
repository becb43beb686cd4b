"""HTML pages from the templates of this folder, in one file that needs nothing else."""

import base64
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headscope import viz
from headscope.app.report.docstrings import inline
from headscope.kernels.formatting import ordinal

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
ENVIRONMENT.filters["ordinal"] = ordinal
ENVIRONMENT.filters["as_text"] = lambda value: (
    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
)


class Figure(NamedTuple):
    """A figure of a page: its id, its data as JSON, alternative text, caption and height."""

    name: str
    data: str
    alt: str
    caption: Markup
    height: int


def figure(name: str, result: xr.Dataset, variable: str, alt: str, caption: Markup) -> Figure:
    """Draw a variable of a result for a page."""
    drawn = viz.draw(result, variable)
    return Figure(name, str(drawn.to_json()), alt, caption, drawn.layout.height)


def render(
    template: str,
    title: str,
    figures: Sequence[Figure] = (),
    plotly_address: str | None = None,
    **context: Any,
) -> str:
    """Fill in a template of this folder, which names what is in the context.

    The page holds the figures and plotly.js compressed, and unpacks them where it is opened.
    ``plotly_address`` is that of a plotly.js that pages share.
    """
    plotly = ""
    if figures and plotly_address is None:
        from plotly.offline import get_plotlyjs

        plotly = packed(get_plotlyjs())
    data = ",".join(f"{json.dumps(drawing.name)}:{drawing.data}" for drawing in figures)
    page = ENVIRONMENT.get_template(f"{template}.html.j2")
    return page.render(
        title=title,
        plotly=plotly,
        plotly_address=plotly_address or "",
        figure_data=packed(f"{{{data}}}") if figures else "",
        **context,
    )


def packed(text: str) -> str:
    """Compress a text for the inside of a page, the same each time.

    >>> gzip.decompress(base64.b64decode(packed("</script>"))).decode()
    '</script>'
    """
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def sentences(parts: list[Markup]) -> Markup:
    """Join sentences, with or without their stops."""
    return Markup(". ").join(part.rstrip(".") for part in parts)


def is_doubtful(result: xr.Dataset) -> bool:
    """Return whether a result contradicts another number, rests on too little, or lacks a part."""
    doubtful = result.attrs.get("verdict") in ("disagreement", "too_few")
    return doubtful or "WARNING" in str(result.attrs.get("note", ""))

"""Docstrings as HTML."""

import inspect
import re

from markupsafe import Markup, escape

# Last paragraph of an analysis' docstring: where its definitions come from.
SOURCE = re.compile(r"^Sources?:\s*", re.IGNORECASE)


def render(docstring: str) -> tuple[str, Markup]:
    """Convert a numpydoc docstring into its summary and the HTML of the rest.

    Paragraphs, lists, ``literals`` and underlined sections are recognised; everything else stays
    text, whatever it contains.

    >>> render("Attention sinks.\\n\\nWeight of ``k`` & co.\\n\\nSource: Gu et al.")[1]
    Markup('<p>Weight of <code>k</code> &amp; co.</p>\\n<p class="source"><b>Source</b> Gu et al.</p>')
    """  # noqa: E501
    summary, _, body = inspect.cleandoc(docstring).partition("\n\n")
    blocks = [_block(block) for block in re.split(r"\n\s*\n", body) if block.strip()]
    return " ".join(summary.split()), Markup("\n").join(blocks)


def inline(text: str) -> Markup:
    """Escape text, and set ``literals`` and `names` as code.

    >>> inline("``a<b`` and `importance`")
    Markup('<code>a&lt;b</code> and <code>importance</code>')
    """
    code = r"<code>\g<literal>\g<name></code>"
    pattern = r"``(?P<literal>.+?)``|`(?P<name>[^`]+)`"
    return Markup(re.sub(pattern, code, str(escape(text))))


def _block(block: str) -> Markup:
    """Convert one paragraph, list or section into HTML."""
    lines = block.splitlines()
    if len(lines) > 1 and set(lines[1].strip()) == {"-"}:
        title = Markup("<h5>{}</h5>").format(inline(lines[0].strip()))
        body = inspect.cleandoc("\n".join(lines[2:]))
        return title + Markup("\n") + _block(body) if body else title
    if lines[0].lstrip().startswith(("- ", "* ")):
        entries = re.split(r"(?m)^\s*[-*] ", block)[1:]
        items = Markup("").join(Markup("<li>{}</li>").format(_joined(entry)) for entry in entries)
        return Markup("<ul>{}</ul>").format(items)
    source = SOURCE.match(block)
    if source:
        label = source.group().strip().rstrip(":").capitalize()
        text = _joined(block[source.end() :])
        return Markup('<p class="source"><b>{}</b> {}</p>').format(label, text)
    return Markup("<p>{}</p>").format(_joined(block))


def _joined(text: str) -> Markup:
    return inline(" ".join(text.split()))

"""Prose: docstrings as HTML."""

from __future__ import annotations

import html
import inspect
import re

# What closes a docstring of an analysis: where its definitions come from.
SOURCE = re.compile(r"^Sources?:\s*", re.IGNORECASE)


def render(docstring: str) -> tuple[str, str]:
    """Turn a numpydoc docstring into its summary and the HTML of the rest.

    Paragraphs, lists, ``literals`` and underlined sections are recognised; everything else stays
    text, whatever it contains.

    Examples
    --------
    >>> render("Sinks: parked weight.\\n\\nWeight of ``k`` & co.\\n\\nSource: Gu et al.")
    ('Sinks: parked weight.', '<p>Weight of <code>k</code> &amp; co.</p>\\n<p class="source"><b>Source</b> Gu et al.</p>')
    """  # noqa: E501
    summary, _, rest = inspect.cleandoc(docstring).partition("\n\n")
    return " ".join(summary.split()), "\n".join(_block(each) for each in _blocks(rest))


def inline(text: str) -> str:
    """Escape text, and set ``literals`` and `names` as code.

    Examples
    --------
    >>> inline("``a<b`` and `importance`")
    '<code>a&lt;b</code> and <code>importance</code>'
    """
    escaped = html.escape(text, quote=False)
    return re.sub(r"``(.+?)``|`([^`]+)`", lambda m: f"<code>{m[1] or m[2]}</code>", escaped)


def _blocks(text: str) -> list[str]:
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]


def _block(block: str) -> str:
    lines = block.splitlines()
    if len(lines) > 1 and set(lines[1].strip()) == {"-"}:
        rest = "\n".join(lines[2:])
        title = f"<h4>{inline(lines[0].strip())}</h4>"
        return title + ("\n" + _block(inspect.cleandoc(rest)) if rest.strip() else "")
    if lines[0].lstrip().startswith(("- ", "* ")):
        entries = re.split(r"(?m)^\s*[-*] ", block)[1:]
        return "<ul>" + "".join(f"<li>{_joined(entry)}</li>" for entry in entries) + "</ul>"
    found = SOURCE.match(block)
    if found:
        label = found.group().strip().rstrip(":").capitalize()
        return f'<p class="source"><b>{label}</b> {_joined(block[found.end() :])}</p>'
    return f"<p>{_joined(block)}</p>"


def _joined(text: str) -> str:
    return inline(" ".join(text.split()))

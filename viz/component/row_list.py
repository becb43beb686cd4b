"""Selectable rows: heads in order of a score, or positions in prompts with their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headscope.viz._labels import shown_token
from headscope.viz.component.view import View


@dataclass(frozen=True)
class Row:
    """One row: the value that a pick sends, a prefix, a name, a share as a bar, and a suffix.

    ``words`` are tokens in a line, the one at index ``at`` marked; ``hint`` is shown on hover.
    """

    id: Any
    prefix: str
    tail: str = ""
    name: str = ""
    share: float | None = None
    words: tuple[str, ...] = ()
    at: int | None = None
    hint: str = ""


def row_list(title: str, groups: Mapping[str, Sequence[Row]], picked: Any = None) -> View:
    """Draw rows under the headings of their groups; arrow keys move, a click or Enter picks.

    >>> row_list("Heads", {"": [Row([0, 1], "1st", name="L0H1", words=(" a",))]}).data["groups"][0][
    ...     "rows"][0]["words"]
    ['·a']
    """
    listed = [
        {
            "title": heading,
            "rows": [
                {**asdict(row), "words": [shown_token(word) for word in row.words]} for row in rows
            ],
        }
        for heading, rows in groups.items()
    ]
    return View("row_list", {"title": title, "groups": listed, "picked": picked})

"""Report all problems of a YAML file at once, each with its line and column."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from headscope.kernels.errors import InvalidInput

Location = tuple[int | str, ...]
"""Names and indices that lead to a value, as pydantic gives them."""
UNREADABLE = object()
MESSAGES = {
    "missing": "missing",
    "extra_forbidden": "{value!r} is unknown{near}",
    "string_type": "{value!r} is not a text{quoted}",
    "string_pattern_mismatch": "the text is empty",
    "int_type": "{value!r} is not a whole number",
    "greater_than_equal": "{value} is too small; give at least {ge}",
    "literal_error": "no {value!r}{near}",
    "list_type": "give a list, one `- ...` a line",
    "too_short": "the list is empty; give at least one",
    "dict_type": "give names with values, `name: value`",
    "model_type": "give names with values, `name: value`",
    "value_error": "{error}",
}


class InvalidFile(InvalidInput):
    """A file with problems: line and column of each, from 1, and what is wrong there."""

    def __init__(self, file: Path, problems: Collection[tuple[int, int, str]]) -> None:
        self.lines = [f"{file}:{line}:{column}: {text}" for line, column, text in sorted(problems)]
        super().__init__("\n".join(self.lines))


class MarkedFile:
    """A YAML file as plain data, with the line and column of every value, and its errors.

    ``content`` are its bytes, ``data`` what it holds as dicts, lists and scalars.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: set[tuple[int, int, str]] = set()
        self._nodes: dict[Location, yaml.Node] = {}
        self._names: dict[Location, yaml.Node] = {}
        try:
            self.content = path.read_bytes()
            node = yaml.compose(self.content.decode(), yaml.SafeLoader)
            self.data = None if node is None else self._read(node, ())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise InvalidInput(f"job: {path} cannot be read: {reason}") from error
        except RecursionError as error:
            raise InvalidFile(path, [(1, 1, "a value holds itself")]) from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            parts = [getattr(error, name, None) for name in ("context", "problem")]
            message = " ".join(filter(None, parts)) or str(error).splitlines()[0]
            location = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise InvalidFile(path, [(*location, f"not YAML: {message}")]) from error

    def _read(self, node: yaml.Node, at: Location) -> Any:
        """Convert a node into data; unreadable values and duplicate names are recorded."""
        self._nodes[at] = node
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*at, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node)
        values: dict[str, Any] = {}
        for key, value in node.value:
            name = self._scalar(key) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                self._note(key, f"{_field(at)}: a name must be a text")
            elif name in values:
                first = self.line((*at, name))
                self._note(key, f"{_field(at)}: {name!r} is there twice, first in line {first}")
            else:
                self._names[*at, name] = key
                values[name] = self._read(value, (*at, name))
        return values

    def _scalar(self, node: yaml.Node) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node)  # type: ignore[no-untyped-call, unused-ignore]
        except (yaml.YAMLError, ValueError) as error:
            self._note(node, f"{node.value!r} cannot be read: {str(error).splitlines()[0]}")
            return UNREADABLE
        finally:
            loader.dispose()  # type: ignore[no-untyped-call, unused-ignore]

    def line(self, at: Location) -> int:
        """Return the line of a value, counted from 1."""
        return int(self._nodes[at].start_mark.line) + 1

    def add(self, at: Location, text: str, *, name: bool = False) -> None:
        """Record a problem with a value, or with its name."""
        self._note(self._names[at] if name else self._nearest(at), text)

    def add_errors(self, error: ValidationError, kind: type[BaseModel], at: Location = ()) -> None:
        """Record the errors that pydantic reports for the values of a model at a location."""
        for detail in error.errors(include_url=False):
            if detail["input"] is UNREADABLE:
                continue
            where, context = (*at, *detail["loc"]), detail.get("ctx", {})
            node = self._nearest(where)
            raw = node.value if isinstance(node, yaml.ScalarNode) else ""
            unknown = detail["type"] == "extra_forbidden"
            fields = [field.alias or name for name, field in kind.model_fields.items()]
            expected = re.findall("'(.*?)'", str(context.get("expected", "")))
            text = MESSAGES.get(detail["type"], "{message}").format(
                value=where[-1] if unknown else raw or detail["input"],
                near=near(str(where[-1]), fields) if unknown else near(raw, expected),
                quoted=f"; write it in quotes, '{raw}'" if raw else "",
                message=detail["msg"],
                **context,
            )
            if detail["type"] != "value_error":
                text = f"{_field(where[:-1] if unknown else where)}: {text}"
            self.add(where, text, name=unknown)

    def _nearest(self, at: Location) -> yaml.Node | None:
        """Return the node of a value, or of the nearest one around it that the file holds."""
        while at and at not in self._nodes:
            at = at[:-1]
        return self._nodes.get(at)

    def _note(self, node: yaml.Node | None, text: str) -> None:
        """Record a problem at a node, or at the start of the file."""
        location = (node.start_mark.line + 1, node.start_mark.column + 1) if node else (1, 1)
        self.problems.add((*location, " ".join(text.split())))

    def check(self) -> None:
        """Raise all that was noted."""
        if self.problems:
            raise InvalidFile(self.path, self.problems)


def _field(at: Location) -> str:
    """Return the field of a value: the last name of its path, in singular for an entry."""
    names = [part for part in at if isinstance(part, str)]
    if not names:
        return "job"
    entry = isinstance(at[-1], int) and names[-1] in ("models", "tasks")
    return names[-1].removesuffix("s") if entry else names[-1]


def near(name: str, names: Collection[str]) -> str:
    """Return the name that was probably meant, or all names.

    >>> near("sinkz", ("sinks", "span"))
    '; did you mean sinks?'
    >>> near("zebra", ("sinks", "span"))
    '; there are sinks, span'
    """
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"

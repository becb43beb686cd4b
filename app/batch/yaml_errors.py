"""Marked values: what a YAML file says, with the line and column of each, and all that is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from headscope.kernels.errors import InvalidInput

KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class Problem(NamedTuple):
    """Something wrong in a file, with its place; both counted from 1."""

    line: int
    column: int
    text: str


class Faulty(InvalidInput):
    """A file with problems, all of which are told; one line each."""

    def __init__(self, file: Path, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        self.lines = [f"{file}:{one.line}:{one.column}: {one.text}" for one in self.problems]
        super().__init__("\n".join(self.lines))


class Reader:
    """Reads the nodes of one file, and collects what is wrong with them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def root(self) -> tuple[bytes, yaml.Node | None]:
        """Read the file: its bytes and its node.

        Raises
        ------
        InvalidInput
            When it cannot be read.
        """
        try:
            data = self.file.read_bytes()
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise InvalidInput(f"job: {self.file} cannot be read: {reason}") from error
        try:
            return data, yaml.compose(text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            words = " ".join(part for part in (error.context, error.problem) if part)
            raise Faulty(self.file, [Problem(at[0], at[1], f"not YAML: {words}")]) from error
        except yaml.YAMLError as error:
            raise Faulty(
                self.file, [Problem(1, 1, f"not YAML: {error}".splitlines()[0])]
            ) from error

    def refuse(self, node: yaml.Node | None, text: str) -> None:
        """Note a problem at a node, or at the start of the file."""
        at = (node.start_mark.line + 1, node.start_mark.column + 1) if node else (1, 1)
        self.problems.append(Problem(at[0], at[1], " ".join(text.split())))

    def check(self) -> None:
        """Raise all that was noted."""
        if self.problems:
            raise Faulty(self.file, self.problems)

    def mapping(
        self, node: yaml.Node | None, what: str, known: Collection[str] | None = None
    ) -> dict[str, yaml.Node]:
        """Read names and their values; double and unknown names are noted and left out."""
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, f"{what}: give names with values, `name: value`")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.value(key) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                self.refuse(key, f"{what}: a name must be a text")
            elif known is not None and name not in known:
                self.refuse(key, f"{what}: {name!r} is unknown{near(name, known)}")
            elif name in found:
                first = found[name].start_mark.line + 1
                self.refuse(key, f"{what}: {name!r} is there twice, first in line {first}")
            else:
                found[name] = value
        return found

    def items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """Read a list that is not empty."""
        if not isinstance(node, yaml.SequenceNode):
            self.refuse(node, f"{what}: give a list, one `- ...` a line")
            return []
        if not node.value:
            self.refuse(node, f"{what}: the list is empty; give at least one")
        return list(node.value)

    def value(self, node: yaml.Node) -> Any:
        """Read one value; None, and a note, where it is none."""
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, "one value is needed here, not a list or names with values")
            return None
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node)  # type: ignore[no-untyped-call, unused-ignore]
        except (yaml.YAMLError, ValueError) as error:
            self.refuse(node, f"{node.value!r} cannot be read: {str(error).splitlines()[0]}")
            return None
        finally:
            loader.dispose()  # type: ignore[no-untyped-call, unused-ignore]

    def text(self, node: yaml.Node, what: str) -> str:
        """Read a text that is not empty; "", and a note, where it is none."""
        found = self._of(node, what, str)
        if found is not None and not str(found).strip():
            self.refuse(node, f"{what}: the text is empty")
        return "" if found is None else str(found)

    def count(self, node: yaml.Node, what: str, least: int = 1) -> int:
        """Read a whole number; the least one, and a note, where it is none or too small."""
        found = self._of(node, what, int)
        if found is None:
            return least
        if found < least:
            self.refuse(node, f"{what}: {found} is too small; give at least {least}")
            return least
        return int(found)

    def _of(self, node: yaml.Node, what: str, kind: type) -> Any:
        before = len(self.problems)
        found = self.value(node)
        if len(self.problems) > before:
            return None
        if type(found) is not kind:
            raw = node.value if isinstance(node, yaml.ScalarNode) else found
            quoted = f"; write it in quotes, '{raw}'" if kind is str and raw else ""
            self.refuse(node, f"{what}: {raw!r} is not {KINDS[kind]}{quoted}")
            return None
        return found


def near(name: str, known: Collection[str]) -> str:
    """Name what was probably meant, or all that there is.

    Examples
    --------
    >>> near("sinkz", ("sinks", "span"))
    '; did you mean sinks?'
    >>> near("zebra", ("sinks", "span"))
    '; there are sinks, span'
    """
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"

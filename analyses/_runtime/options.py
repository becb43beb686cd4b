"""Options of analyses: bounds are in the signature of ``run`` and checked for every caller.

``epsilon: Annotated[float, Between(0, 1)] = 0.3`` is all that an analysis says; the registry wraps
``run``, so a notebook, the command line, a job file and the dashboard meet the same check.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, get_origin

from headscope.kernels.errors import InvalidInput, NotApplicable

SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Bound(Protocol):
    """A condition on the value of an option."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value, naming the option."""


class Option(NamedTuple):
    """Default value, help text and bounds of one option of an analysis."""

    default: Any
    help: str
    bounds: tuple[Bound, ...] = ()


@dataclass(frozen=True)
class Between:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float

    def check(self, name: str, value: float) -> None:
        """Refuse a number outside."""
        if not self.low <= value <= self.high:
            raise InvalidInput(f"{name}: {value!r} is outside {self.low:g} … {self.high:g}")


@dataclass(frozen=True)
class AtLeast:
    """A number of at least ``low``."""

    low: float

    def check(self, name: str, value: float) -> None:
        """Refuse a smaller number."""
        if not value >= self.low:
            raise InvalidInput(f"{name}: {value!r} is too small; give at least {self.low:g}")


@dataclass(frozen=True)
class OneOf:
    """One of a few choices."""

    choices: Collection[str]

    def check(self, name: str, value: str) -> None:
        """Refuse another word."""
        if value not in self.choices:
            raise InvalidInput(f"{name}: {value!r} is not one of {', '.join(sorted(self.choices))}")


def bounds(run: Callable[..., Any]) -> dict[str, tuple[Bound, ...]]:
    """Read the bounds of the options in the signature of ``run``."""
    parameters = inspect.signature(inspect.unwrap(run), eval_str=True).parameters
    return {
        name: parameter.annotation.__metadata__
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and get_origin(parameter.annotation) is Annotated
    }


def checked(
    run: Callable[..., Any], analysis: str = "", supports: Collection[str] = ("sigmoid",)
) -> Callable[..., Any]:
    """Return ``run`` with its options, and the rows that it is given, checked at every call."""
    limits = bounds(run)

    @functools.wraps(run)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        for name in options.keys() & limits.keys():
            for bound in limits[name]:
                bound.check(name, options[name])
        for argument in (*arguments, *options.values()):
            refuse_sigmoid(argument, analysis, supports)
        return run(*arguments, **options)

    return wrapped


def refuse_sigmoid(argument: Any, analysis: str, supports: Collection[str]) -> None:
    """Refuse a capture or model of sigmoid attention where an analysis takes rows for shares."""
    attrs, geometry = (getattr(argument, name, None) for name in ("attrs", "geometry"))
    if "sigmoid" not in supports and (
        getattr(geometry, "sigmoid", False)
        or (isinstance(attrs, dict) and attrs.get("weights") == "sigmoid")
    ):
        raise NotApplicable(
            f"weights: {analysis} takes the weights of a row for shares of one whole, and those of "
            "sigmoid attention do not sum to one; see sinks"
        )


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers from 1, separated by commas; in rising order, each once.

    >>> numbers("counts", "4, 1,2")
    (1, 2, 4)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(f"{name}: {text!r}; give whole numbers from 1, such as 64,256")
    return tuple(sorted({int(part) for part in parts}))


def require_one_text(attention: str, analysis: str, known: Collection[str] = ("self",)) -> None:
    """Refuse an attention of an encoder–decoder model that an analysis has no meaning for."""
    if attention not in known:
        raise NotApplicable(
            f"capture: {analysis} follows attention through one text from layer to layer, and this "
            f"is the {attention} attention of an encoder–decoder model; see sinks"
        )


def parse(
    analysis: str, options: Mapping[str, Option], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert option values, also as text from a command line, into the types of their defaults.

    >>> from headscope import analyses
    >>> parse("sinks", analyses.options("sinks"), {"epsilon": "0.8"})
    {'epsilon': 0.8}
    """
    return {name: _value(analysis, options, name, value) for name, value in values.items()}


def _value(analysis: str, known: Mapping[str, Option], name: str, value: Any) -> Any:
    if name not in known:
        raise InvalidInput(
            f"{name}: {analysis} has no such option; it has {', '.join(sorted(known)) or 'none'}"
        )
    kind = type(known[name].default)
    refusal = InvalidInput(f"{name}: {value!r} is not of the type {kind.__name__}")
    if kind is bool:
        if str(value).lower() not in SWITCH:
            raise refusal
        return SWITCH[str(value).lower()]
    if isinstance(value, bool):
        raise refusal
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise refusal from None
    if kind is int and not isinstance(value, str) and converted != value:
        raise refusal
    for bound in known[name].bounds:
        bound.check(name, converted)
    return converted

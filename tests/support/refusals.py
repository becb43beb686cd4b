"""What is refused: in one line, that begins with the name of the field that is wrong."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from headscope.kernels.errors import HeadscopeError


def refusal(call: Callable[..., Any], /, *arguments: Any, **options: Any) -> HeadscopeError:
    """Return the error of one line that a call is refused with."""
    with pytest.raises(HeadscopeError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def check_refusal(field: str, call: Callable[..., Any], /, *arguments: Any, **options: Any) -> None:
    """Fail unless a call is refused for this field."""
    error = refusal(call, *arguments, **options)
    assert error.field == field, error


def check_message(
    pattern: str, call: Callable[..., Any], /, *arguments: Any, **options: Any
) -> None:
    """Fail unless a call is refused in words that this regular expression finds."""
    line = str(refusal(call, *arguments, **options))
    assert re.search(pattern, line), line

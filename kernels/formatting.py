"""Numbers for readers: three significant digits in sentences, tables and figures."""

import math
from typing import SupportsFloat

MISSING = "not measured"


def amount(value: SupportsFloat, sign: str = "") -> str:
    """Write a number with three significant digits; from 100 to a million, the whole number.

    ``sign`` is ``"+"`` where a rise and a fall should be distinguished.

    >>> amount(0.25), amount(0.0), amount(0.000123), amount(float("nan")), amount(1234.5)
    ('0.250', '0', '0.000123', 'not measured', '1234')
    >>> amount(13.603, "+"), amount(-1.9e-7), amount(99.96)
    ('+13.6', '-1.90e-07', '100')
    """
    value = float(value)
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    whole = 100 <= abs(value) < 1e6
    return f"{value:{sign}.0f}" if whole else f"{value:{sign}#.3g}".removesuffix(".")


def percent(share: SupportsFloat) -> str:
    """Write a share in percent, with no more than three significant digits.

    >>> percent(0.9), percent(0.99949), percent(2 / 3), percent(0.00012), percent(float("nan"))
    ('90%', '99.9%', '66.7%', '0.012%', 'not measured')
    """
    share = float(share)
    return f"{100 * share:.3g}%" if math.isfinite(share) else MISSING


def ordinal(number: int, tied: int = 1) -> str:
    """Write a rank, and how many share it.

    >>> ordinal(1), ordinal(12), ordinal(22, 3)
    ('1st', '12th', '22nd (3 tied)')
    """
    ends = {1: "st", 2: "nd", 3: "rd"} if number % 100 not in (11, 12, 13) else {}
    shared = f" ({tied} tied)" if tied > 1 else ""
    return f"{number}{ends.get(number % 10, 'th')}{shared}"

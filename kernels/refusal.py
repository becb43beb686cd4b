"""The one exception of headscope: an input that is refused instead of guessed at."""


class Refused(ValueError):  # noqa: N818
    """An input that headscope will not guess about.

    The message is one line that names the field and the fix; the command line prints it and exits
    with code 2.

    Examples
    --------
    >>> raise Refused("tile: 0 keys a tile; give 1 or more")
    Traceback (most recent call last):
        ...
    headscope.kernels.refusal.Refused: tile: 0 keys a tile; give 1 or more
    """

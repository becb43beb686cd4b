"""The errors of headscope: what a user can mend, each with the field that is wrong and its fix."""


class HeadscopeError(ValueError):
    """An input, model or request that headscope refuses instead of guessing.

    The message is one line, ``field: what is wrong; the fix``; the command line prints it and exits
    with code 2. Unless given, ``field``, the argument, option or file that is wrong, is the text
    before the first ": ", and ``fix`` that after the last "; ".

    Examples
    --------
    >>> error = InvalidInput("tile: 0 keys a tile; give 1 or more")
    >>> error.field, error.fix
    ('tile', 'give 1 or more')
    """

    def __init__(
        self, message: str = "", *, field: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(message)
        head, colon, _ = message.partition(": ")
        _, semicolon, tail = message.rpartition("; ")
        self.field = field if field is not None else head if colon else ""
        self.fix = fix if fix is not None else tail if semicolon else ""


class InvalidInput(HeadscopeError):  # noqa: N818
    """A value, name, file or combination of options that is wrong."""


class UnsupportedModel(HeadscopeError):  # noqa: N818
    """A model whose attention headscope cannot follow."""


class NotApplicable(HeadscopeError):  # noqa: N818
    """A statistic, edit or analysis that has no meaning for this model or these prompts."""


class ResourceLimit(HeadscopeError):  # noqa: N818
    """A request that needs more memory, context or hardware than there is."""

"""Tasks: seeded prompt sets with known answers, one module each; the folder is the registry."""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tasks._vocabulary import REGISTERS, Vocabulary
from headscope.probes.prompts.tokenized_text import Tokenizer

FILES = (".jsonl", ".ndjson")
"""Endings of files that hold an object a line, of a user's own task too."""

_REGISTER: ContextVar[str | None] = ContextVar("register", default=None)


def names() -> list[str]:
    """Names of the tasks, without importing them."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def load(name: str) -> ModuleType:
    """The module of a task."""
    if name not in names():
        raise InvalidInput(
            f"task: {name!r} is unknown; choose one of {', '.join(names())}, or a .jsonl"
        )
    return importlib.import_module(f"{__name__}.{name}")


@contextmanager
def wording(register: str | None) -> Iterator[None]:
    """Set the register of the tasks that are made inside without one, also by analyses.

    None leaves it as it is.

    >>> with wording("natural"):
    ...     make("ioi", n=1).register
    'natural'
    """
    if register not in (None, *REGISTERS):
        raise InvalidInput(f"register: {register!r} is unknown; choose {' or '.join(REGISTERS)}")
    token = _REGISTER.set(register or _REGISTER.get())
    try:
        yield
    finally:
        _REGISTER.reset(token)


def make(
    name: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    n: int = 64,
    seed: int = 0,
    *,
    register: str | None = None,
    vocab_size: int | None = None,
    **options: Any,
) -> Task:
    """Draw a task: `n` prompts with known answers.

    Parameters
    ----------
    name
        A name of the registry, or the path of a ``.jsonl`` file of your own prompts.
    tokenizer
        Tokenizer of the model; prompts that it does not allow are drawn again, and the task says
        how many (`redrawn`). None allows every prompt. One that knows too few words is refused.
    n
        Number of prompts (a file gives all of its lines, and `n` and `seed` are not used).
    seed
        Seed of the draw; equal seeds give equal prompts.
    register
        Wording: ``plain`` (few short words, as the bundled models know them) or ``natural``
        (English). None takes that of `wording`; outside it plain where the tokenizer knows whole
        words only, else natural.
    vocab_size
        Number of token ids of a model without tokenizer, for tasks of random tokens.
    options
        Options of the task's own `generate`.

    Examples
    --------
    >>> words = make("induction", n=2, length=5).prompts[0].clean.split()
    >>> words[0] == words[5]
    True
    """
    if os.fspath(name).lower().endswith(FILES):
        from headscope.probes.prompts.tasks._jsonl import read

        return read(name, **options)
    module = load(os.fspath(name))
    if n < 1:
        raise InvalidInput(f"n: {n} prompts asked for; ask for at least 1")
    allowed = [
        parameter.name
        for parameter in inspect.signature(module.generate).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in allowed:
            raise InvalidInput(
                f"{option}: not an option of task {module.__name__.rpartition('.')[2]}; "
                f"it has {', '.join(allowed) or 'none'}"
            )
    vocabulary = Vocabulary(tokenizer, vocab_size, register or _REGISTER.get())
    prompts = tuple(module.generate(n, seed, vocabulary, **options))
    doc = (module.__doc__ or "").strip().splitlines()[0]
    redrawn, register = vocabulary.redrawn, vocabulary.register
    return Task(os.fspath(name), prompts, module.METRIC, seed, doc, redrawn, register)

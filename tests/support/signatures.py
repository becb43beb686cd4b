"""Calls inside the kernels checked against their signatures, at a cost that tests can bear."""

import ast
from functools import wraps
from typing import Any, get_type_hints

from beartype import beartype
from jaxtyping import _import_hook, config, install_import_hook


def names_shape(function: ast.FunctionDef) -> bool:
    """Say whether a signature holds a text, as ``Float[Tensor, "batch head"]`` does."""
    parts = [*ast.walk(function.args), *ast.walk(function.returns or ast.Constant(None))]
    return any(isinstance(getattr(part, "value", None), str) for part in parts)


class Outermost(_import_hook.JaxtypingTransformer):
    """Wrap functions once, at import; sizes are remembered only where a signature names some.

    jaxtyping also wraps functions inside functions, anew at every call of the outer one. That was
    a third of what the suite took, and none of them has a shape in its signature.
    """

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if any(isinstance(parent, ast.FunctionDef) for parent in self._parents):
            return node
        result = super().visit_FunctionDef(node)
        if not names_shape(node):
            # jaxtyped(typechecker=check) becomes check.
            node.decorator_list[-1] = node.decorator_list[-1].keywords[0].value
        return result


def check(function: Any) -> Any:
    """Check types at every call, except where one is a name that only type checkers import."""
    try:
        get_type_hints(function)
    except (NameError, AttributeError):
        return function
    checked = beartype(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if config.jaxtyping_disable else checked)(*args, **kwargs)

    return call


def check_calls(modules: list[str]) -> None:
    """Check every call in modules that are yet to be imported."""
    _import_hook.JaxtypingTransformer = Outermost
    install_import_hook(modules, "signatures.check")

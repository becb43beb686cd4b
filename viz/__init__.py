"""Views: the dims of an array decide how it is drawn.

One module per kind of view; the folder is the registry. A view module has
``accepts(array) -> bool`` and ``figure(array, *, lower=None, upper=None, fit=False)``, a plotly
figure. ``lower`` and ``upper`` are the ends of each value's interval, drawn or in the hover text
(not by matrix, patches and pattern); ``fit`` spreads the colours, or the axis, over the values
instead of over the range of the score. No two views accept the same array, but for the general one,
bars, which is asked last.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

import xarray as xr

from headscope.kernels.errors import InvalidInput
from headscope.kernels.formatting import amount
from headscope.viz._labels import ABSENT, absent, head_name, measured, shown_token, visible
from headscope.viz._scale import ranks
from headscope.viz._table import top
from headscope.viz.component.head_grid import head_grid
from headscope.viz.component.long_view import long_view
from headscope.viz.component.relevance_view import relevance_view
from headscope.viz.component.thumbnails import thumbnail_row, thumbnails
from headscope.viz.component.token_view import token_view

__all__ = [
    "ABSENT",
    "absent",
    "amount",
    "choose",
    "draw",
    "head_grid",
    "head_name",
    "interval",
    "load",
    "long_view",
    "measured",
    "names",
    "ranks",
    "relevance_view",
    "show",
    "shown_token",
    "thumbnail_row",
    "thumbnails",
    "token_view",
    "top",
    "variables",
    "visible",
]


# Draws whatever has few entries, so a view that knows the dims goes first.
GENERAL = "bars"


def names() -> list[str]:
    """List every view, without importing any.

    Examples
    --------
    >>> names()
    ['bars', 'graph', 'grid', 'lane', 'lines', 'matrix', 'number', 'patches', 'pattern', 'points']
    """
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return sorted(name for name in modules if not name.startswith("_"))


def load(name: str) -> ModuleType:
    """Import the view called `name`."""
    if name not in names():
        raise InvalidInput(f"view: no view is called {name!r}; use one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def choose(array: xr.DataArray) -> ModuleType:
    """Choose the view for an array from its dims.

    ``(layer, head)`` is a grid, one position dim a lane, two a pattern, ``(edge,)`` a graph,
    ``(row, column)`` the patches of an image, ``(point,)`` points in the plane, ``(one, other)`` a
    matrix, ``(checkpoint, ...)`` lines over training, ``()`` a number, and one or two other dims
    are bars.

    Examples
    --------
    >>> choose(xr.DataArray([[0.1, 0.9]], dims=("layer", "head"))).__name__
    'headscope.viz.grid'
    """
    for name in sorted(names(), key=lambda name: name == GENERAL):
        view = load(name)
        if view.accepts(array):
            return view
    raise InvalidInput(
        f"view: no view draws {array.name or 'an array'} of dtype {array.dtype} with dims "
        f"{array.dims}; average or select until it is (layer, head), a position dim, two position "
        "dims, (edge,), (row, column), (point,) with x and y, (checkpoint, ...), or at most two "
        "others"
    )


def variables(dataset: xr.Dataset) -> list[str]:
    """List the variables to show: all but those that are the interval of another.

    Examples
    --------
    >>> bound = xr.DataArray(0.4, attrs={"interval_of": "rate"})
    >>> variables(xr.Dataset({"rate": xr.DataArray(0.5), "rate_lower": bound}))
    ['rate']
    """
    return [str(name) for name, array in dataset.items() if "interval_of" not in array.attrs]


def interval(
    dataset: xr.Dataset, name: str
) -> tuple[xr.DataArray, xr.DataArray] | tuple[None, None]:
    """Return the bounds that belong to a variable, or a pair of None."""
    lower, upper = f"{name}_lower", f"{name}_upper"
    if lower in dataset and upper in dataset:
        return dataset[lower], dataset[upper]
    return None, None


def draw(dataset: xr.Dataset, name: str, **options: Any) -> Any:
    """Draw one variable of a capture or a result, with its interval where it has one.

    ``options`` go to the ``figure`` of the chosen view, for example ``fit=True``. The plotly figure
    that is returned can be displayed in a notebook by ``figure.show()``.

    Examples
    --------
    >>> rate = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"), attrs={"units": "fraction"})
    >>> draw(xr.Dataset({"rate": rate}), "rate").data[0].type
    'heatmap'
    """
    if name not in dataset:
        raise InvalidInput(
            f"view: no variable {name!r}; use one of {', '.join(variables(dataset))}"
        )
    array = dataset[name]
    lower, upper = interval(dataset, name)
    return choose(array).figure(array, lower=lower, upper=upper, **options)


def show(dataset: xr.Dataset, *names: str, **options: Any) -> None:
    """Show variables of a capture or a result in a notebook, one figure below the other.

    Without names all of them; ``options`` go to `draw` for each. Where one cannot be drawn, nothing
    is shown.
    """
    figures = [draw(dataset, name, **options) for name in names or variables(dataset)]
    for figure in figures:
        figure.show()

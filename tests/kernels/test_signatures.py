"""Calls inside the kernels are checked in every test: that a wrong one is noticed."""

import ast
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError
from signatures import names_shape

from headscope.kernels import panels
from headscope.kernels.ranges import length
from headscope.kernels.visibility import _count_before

KERNELS = Path(panels.__file__).parents[1]


def test_a_wrong_shape_is_noticed():
    assert _count_before(torch.ones(2, 3, dtype=torch.bool)).shape == (2, 4)
    with pytest.raises(TypeCheckError, match="mask"):
        _count_before(torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeCheckError, match="mask"):
        _count_before(torch.ones(2, 3))


def test_a_wrong_type_is_noticed():
    assert length(slice(2, 5)) == 3
    with pytest.raises(BeartypeCallHintParamViolation, match="positions"):
        length((2, 5))


@pytest.mark.unchecked_signatures
def test_tests_of_refusals_go_unchecked():
    assert _count_before(torch.ones(2, 3)).shape == (2, 4)


def test_no_function_inside_a_function_names_a_shape():
    # They are not checked: see tests/support/signatures.py.
    for file in KERNELS.rglob("*.py"):
        parts = ast.walk(ast.parse(file.read_text()))
        for outer in (part for part in parts if isinstance(part, ast.FunctionDef)):
            for part in ast.walk(outer):
                if isinstance(part, ast.FunctionDef) and part is not outer:
                    assert not names_shape(part), f"{file.name}: {part.name}"

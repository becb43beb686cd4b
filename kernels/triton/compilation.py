"""Compile a kernel for a GPU that need not be present, and count its instructions."""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triton
from headscope.kernels.triton.configuration import Configuration
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
PRODUCTS = ("HGMMA", "HMMA")
"""Instructions of the tensor cores: of warp groups (sm_90), of warps (sm_80)."""
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """Resources of a compiled kernel.

    A thread has at most 255 ``registers``; ``stack`` counts its bytes that did not fit there, 0
    when nothing spills, and ``shared`` the bytes of shared memory of a program. ``product`` is the
    instruction of the tensor cores in the loop over unmasked tiles, empty for none;
    ``instructions`` counts those of this loop for each element of a tile of logits.
    """

    registers: int
    stack: int
    shared: int
    product: str
    instructions: float


def compile_for(
    arch: int, kernel: Any, arguments: Mapping[str, Any], chosen: Configuration
) -> Compiled:
    """Compile a kernel for one architecture, without a GPU."""
    signature, constants, hints = signature_of(kernel, arguments)
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=hints)
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    usage, sass = _disassemble(built.asm["cubin"])
    registers = re.search(r"REG:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    assert registers
    assert stack
    loop = plain_loop(sass)
    kinds = [kind for kind in PRODUCTS if any(kind in line for line in loop)]
    elements = chosen.queries * chosen.keys / (32 * chosen.warps)
    return Compiled(
        int(registers[1]),
        int(stack[1]),
        built.metadata.shared,
        kinds[0] if kinds else "",
        round(len(loop) / elements, 2),
    )


def signature_of(
    kernel: Any, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Types of a kernel's arguments, its constants, and what is known of the others."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        else:
            signature[parameter.name] = _describe(value, (index,), constants, hints)
    return signature, constants, hints


def _describe(
    value: Any,
    index: tuple[int, ...],
    constants: dict[tuple[int, ...], Any],
    hints: dict[tuple[int, ...], list[list[Any]]],
) -> Any:
    """Return what Triton specialises a launch on: types, 1, multiples of 16, absent terms."""
    if isinstance(value, tuple):
        inner = [_describe(x, (*index, i), constants, hints) for i, x in enumerate(value)]
        return type(value)(*inner)
    if value is None or (isinstance(value, int) and value == 1):
        constants[index] = value
        return "constexpr"
    if isinstance(value, Tensor):
        hints[index] = [["tt.divisibility", 16]]
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value % 16 == 0:
        hints[index] = [["tt.divisibility", 16]]
    return "i32" if abs(value) < 1 << 31 else "i64"


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """Read resource usage and machine code of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        outputs = [
            subprocess.run(
                [BINARIES / "cuobjdump", option, path], check=True, capture_output=True, text=True
            ).stdout
            for option in ("-res-usage", "-sass")
        ]
    return outputs[0], outputs[1]


def loops(sass: str) -> Iterator[list[str]]:
    """Split machine code into the bodies of its loops, inner and outer."""
    code = [
        (int(match[1], 16), match[2])
        for match in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass)
    ]
    index = {address: number for number, (address, _) in enumerate(code)}
    for number, (address, line) in enumerate(code):
        target = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+)", line)
        # The last instruction branches to itself: padding of the code, no loop.
        if target and int(target[1], 16) < address:
            yield [text for _, text in code[index[int(target[1], 16)] : number + 1]]


def plain_loop(sass: str) -> list[str]:
    """Find the loop over unmasked tiles: the shortest one that multiplies matrices."""
    matches = [
        body for body in loops(sass) if any(kind in line for line in body for kind in PRODUCTS)
    ]
    return min(matches, key=len) if matches else []

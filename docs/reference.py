"""Pages of the reference that follow from the registries: analyses, tasks, edits, commands."""

import inspect
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import typer

from headscope import analyses
from headscope.analyses._runtime import inputs
from headscope.analyses._runtime.evidence import table
from headscope.analyses._runtime.options import AtLeast, Between, Bound, OneOf
from headscope.app.cli.main import app
from headscope.probes import interventions
from headscope.probes.prompts import tasks
from headscope_benchmarks.tables import markdown

NONE = "–"
EDIT = (
    "{heading_level: 2, members: false, merge_init_into_class: true, show_bases: false, "
    "show_root_full_path: false}"
)
PROMPT = 300
"""Characters of the example of a task, at most."""

MODELS = {
    "encoder": "encoders",
    "cross": "cross-attention",
    "vision": "models of images",
    "hybrid": "models with layers without attention",
    "sigmoid": "sigmoid attention",
}


def page(*parts: str) -> str:
    """Join the paragraphs of a page."""
    return "\n\n".join(part for part in parts if part) + "\n"


def analyses_page() -> str:
    """List all analyses by family, each with a link to its definition."""
    parts = [
        "# Analyses",
        "`headscope analyses` prints this list, `headscope analyses NAME` one definition. Without "
        "names `headscope analyze RUN` runs those that need few passes of the model. Evidence is "
        "*causal* where an analysis has a number from an intervention (heads or tokens are changed "
        "and the model runs again); the others say what attention looks like.",
    ]
    for family, members in analyses.families().items():
        rows = (
            (f"[`{name}`]({family}.md#{name})", question_of(name), ", ".join(table()[name]))
            for name in members
        )
        parts += [
            f"## {title(family)}",
            purpose_of(family),
            markdown(("name", "asks", "evidence"), rows),
        ]
    return page(*parts)


def family_page(family: str) -> str:
    """Describe the analyses of a family: definition, options, results."""
    described = (part for name in analyses.families()[family] for part in analysis(name))
    return page(f"# {title(family)}", purpose_of(family), *described)


def analysis(name: str) -> Iterator[str]:
    """Describe one analysis from its module."""
    module = analyses.load(name)
    _, *rest = paragraphs(module.__doc__)
    supports = [MODELS[kind] for kind in MODELS if kind in getattr(module, "SUPPORTS", ())]
    yield f"## {name}"
    yield f"**{analyses.summary(name)}**"
    yield from rest
    yield f"Evidence: {', '.join(table()[name])}. " + ran_on(name, module)
    yield f"Models: causal language models{''.join(f', {kind}' for kind in supports)}."
    yield f"```sh\nheadscope analyze RUN {name}{example(name)}\n```"
    if options := analyses.options(name):
        rows = (
            (f"`{key}`", shown(default), limits(bounds), text.replace("``", "`"))
            for key, (default, text, bounds) in options.items()
        )
        yield markdown(("option", "default", "allowed", "meaning"), rows)
    yield "**Result.** " + section(module.run, "Returns")


def ran_on(name: str, module: ModuleType) -> str:
    """Return which prompts an analysis reads, and what its capture holds."""
    if task := getattr(module, "TASK", None):
        link = f"[`{task}`](../tasks.md#{task})"
        prompts = f"It draws prompts of the task {link} unless `--task` names another."
        if task == inputs.ANY_TASK:
            prompts = (
                "It asks the prompts of the run where they are a "
                "[task of your own](../../how-to/own-task.md). Of other runs it draws prompts of "
                f"the task {link}, unless `--task` names another."
            )
    elif "capture" in inputs.positionals(name):
        prompts = "It reads the prompts of the run."
    else:
        prompts = "It makes its own prompts."
    needs = [*module.NEEDS, *getattr(module, "KEEP", ())]
    listed = ", ".join(f"`{need}`" for need in needs)
    return prompts + (f" Its capture holds {listed}." if listed else "")


def example(name: str) -> str:
    """Write the first option of an analysis as the command line sets it."""
    for key, (default, _, _) in analyses.options(name).items():
        value = str(default).lower() if isinstance(default, bool) else default
        return f" --set {shlex.quote(f'{name}.{key}={value}')}"
    return ""


def tasks_page() -> str:
    """Describe the built-in tasks, each with the prompt that seed 0 draws."""
    parts = [
        "# Tasks",
        "Seeded prompt sets with known answers: `headscope capture MODEL --task NAME --number 32`, "
        "or `tasks.make(NAME, tokenizer=model.tokenizer, n=32)`. Options of a task are set in a "
        "notebook or a [job file](../batch.md). The examples are drawn without a tokenizer, so in "
        "English words; models with a vocabulary of whole words, as the bundled ones, get the "
        "wording `plain`. [Your own task](../how-to/own-task.md) is a `.jsonl` file, one prompt a "
        "line.",
    ]
    for name in tasks.names():
        module = tasks.load(name)
        task = tasks.make(name, n=1)
        prompt = task.prompts[0]
        question = prompt.questions[0]
        right, wrong = some(question.answers), some(question.wrong)
        text = str(prompt.clean)[: question.at]
        cut = f"{text[: PROMPT // 2]} […] {text[-PROMPT // 2 :]}" if len(text) > PROMPT else text
        first, *rest = paragraphs(module.__doc__)
        parts += [
            f"## {name}",
            f"**{first}**",
            *rest,
            f"Metric: {module.METRIC.replace('_', ' ')}.",
            f"```text\n{cut}\n```",
            f"Right: {right}. Wrong: {wrong}.",
            options_of(module.generate),
        ]
    return page(*parts)


def some(answers: Iterable[str]) -> str:
    """Write the first answers of a list."""
    quoted = [f"`{answer.strip()}`" for answer in answers]
    return ", ".join([*quoted[:3], *(["…"] if len(quoted) > 3 else [])])


def options_of(function: Any) -> str:
    """Tabulate the keyword options of a function, from signature and docstring."""
    texts = analyses._parameter_texts(inspect.getdoc(function) or "")
    rows = [
        (
            f"`{parameter.name}`",
            shown(parameter.default),
            texts.get(parameter.name, "").replace("``", "`"),
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    return markdown(("option", "default", "meaning"), rows) if rows else ""


def edits_page() -> str:
    """Document every edit, through mkdocstrings."""
    edits = [
        name
        for name in interventions.__all__
        if inspect.isclass(edit := getattr(interventions, name))
        and issubclass(edit, interventions.Edit)
        and edit is not interventions.Edit
    ]
    return page(
        "# Edits",
        "Interventions are values: they act inside the attention, at any length, and compose in "
        "the order given. `capture(model, prompts, edits=(...,))` and `generate` take them, the "
        "dashboard's what-if panel offers them, and [the how-to](../how-to/edits.md) shows them.",
        *(f"::: headscope.probes.interventions.{name}\n    options: {EDIT}" for name in edits),
    )


def commands_page() -> str:
    """Describe every command from the parser."""
    parts = [
        "# Command line",
        "`headscope COMMAND --help` prints the same. Input that is refused ends with one line and "
        "exit code 2; exit code 1 says that an analysis failed.",
    ]
    for words, command in commands(("headscope",), typer.main.get_command(app)):
        context = command.make_context(words[-1], [], resilient_parsing=True)
        records = [parameter.get_help_record(context) for parameter in command.params]
        rows = [(f"`{names}`", text) for names, text in filter(None, records)]
        usage = [
            parameter.metavar
            for parameter in command.params
            if parameter.param_type_name == "argument"
        ]
        parts += [
            f"## {' '.join(words)}",
            inspect.cleandoc(command.help or ""),
            f"```sh\n{' '.join((*words, *filter(None, usage), '[OPTIONS]'))}\n```",
            markdown(("argument or option", "meaning"), rows) if rows else "",
        ]
    return page(*parts)


def commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the commands below one, each with the words that call it."""
    below: Mapping[str, Any] = getattr(command, "commands", {})
    if not below or (command.callback and command.invoke_without_command):
        yield words, command
    for name, child in below.items():
        yield from commands((*words, name), child)


def paragraphs(doc: str | None) -> list[str]:
    """Split a docstring into paragraphs of Markdown."""
    text = inspect.cleandoc(doc or "").replace("``", "`")
    return [
        re.sub(r"^(Sources?):", r"**\1:**", part)
        for part in re.split(r"\n\s*\n", text)
        if part.strip()
    ]


def section(function: Any, name: str) -> str:
    """Read a section of a numpydoc docstring, as one paragraph."""
    doc = inspect.getdoc(function) or ""
    match = re.search(rf"^{name}\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    return " ".join(match.group(1).replace("``", "`").split()) if match else ""


def title(family: str) -> str:
    """Return the name of a family as its heading does."""
    return analyses.heading(family).partition(":")[0]


def purpose_of(family: str) -> str:
    """Return what the analyses of a family measure."""
    text = analyses.heading(family).partition(": ")[2]
    return text[:1].upper() + text[1:]


def question_of(name: str) -> str:
    """Return the question of an analysis: its first line without its name."""
    before, colon, after = analyses.summary(name).partition(": ")
    return after if colon else before


def shown(value: Any) -> str:
    """Write a default as the command line takes it."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def limits(bounds: Iterable[Bound]) -> str:
    """Write the values that an option allows."""
    texts = []
    for bound in bounds:
        match bound:
            case Between():
                texts.append(f"{bound.low:g} to {bound.high:g}")
            case AtLeast():
                texts.append(f"{bound.low:g} or more")
            case OneOf():
                texts.append(", ".join(f"`{choice}`" for choice in sorted(bound.choices)))
            case _:
                texts.append(str(bound))
    return "; ".join(texts) or NONE

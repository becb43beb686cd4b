"""Count the forward passes of every analysis on the bundled model, for the costs that are stated.

``python -P benchmarks/passes.py`` runs every analysis with its default options and prompts, and
writes ``analyses/_runtime/passes.json``: by analysis, passes over its prompts that do not depend on
the number of heads (``fixed``; ``screened`` where not all heads are ablated), those over the first
few alone (``first``), and ablations of each head (``per_head``). No time is measured. Names on the
command line count these alone.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from headscope import analyses
from headscope.analyses._interventions import ablation, causal_check, screening
from headscope.analyses._runtime import cost
from headscope.analyses._runtime.inputs import DEFAULT_PROMPTS
from headscope.analyses._runtime.runner import execute
from headscope.analyses.retrieval_heads import _head_masking
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model, tasks
from headscope.probes.attention import work


def main() -> None:
    """Count, and write the table as it grows."""
    file = Path(cost.__file__).with_name("passes.json")
    table = json.loads(file.read_text()) if file.exists() else {}
    model = load_model("headscope/bundled")
    prompts = tasks.make("story", model.tokenizer)
    execute(
        "entropy", model, prompts
    )  # the first capture checks the model, which is none of theirs
    for name in sys.argv[1:] or analyses.names():
        table[name] = row = count(name, model, prompts, None)
        number = getattr(analyses.load(name), "PROMPTS", DEFAULT_PROMPTS)
        if number > cost.FIRST_PROMPTS and "fixed" in row:
            few = count(name, model, prompts, cost.FIRST_PROMPTS).get("fixed", row["fixed"])
            first = max(0.0, few - row["fixed"]) / (1 - cost.FIRST_PROMPTS / number)
            row |= {"fixed": round(few - first, 2), "first": round(first, 2)}
        if "exhaustive" in analyses.options(name):
            usual = screening.FEW, screening.FIRST, screening.SAMPLE
            screening.FEW, screening.FIRST, screening.SAMPLE = 0, 4, 2
            row["screened"] = count(name, model, prompts, None)["fixed"]
            screening.FEW, screening.FIRST, screening.SAMPLE = usual
        print(name, table[name], flush=True)
        lines = ",\n".join(f'"{name}": {json.dumps(table[name])}' for name in sorted(table))
        file.write_text(f"{{\n{lines}\n}}\n")


def count(name, model, prompts, number):
    """Return what one analysis takes, in passes over its prompts."""
    prompts = prompts if number is None else replace(prompts, prompts=prompts.prompts[:number])
    total, swept, inside, checking = [0], [0], [False], [False]
    sweep = ablation.sweep

    def counted(tokens):
        total[0] += tokens
        swept[0] += tokens * inside[0]

    def marked(*arguments, **options):
        # Sets of a causal check are as many in any model.
        inside[0] = not checking[0]
        try:
            return sweep(*arguments, **options)
        finally:
            inside[0] = False

    def check_of(function):
        def call(*arguments, **options):
            checking[0] = True
            try:
                return function(*arguments, **options)
            finally:
                checking[0] = False

        return call

    try:
        with (
            patch.object(causal_check, "compare", check_of(causal_check.compare)),
            patch.object(_head_masking, "curve", check_of(_head_masking.curve)),
            patch.object(ablation, "sweep", marked),
            work.counting(counted),
        ):
            execute(name, model, prompts, n=number)
    except NotApplicable as refusal:
        return {"why": str(refusal)}
    whole = model.layers * cost.tokens(name, model, prompts, number)
    each = cost.of_heads(model, 1.0, exhaustive=True)
    return {
        "fixed": round((total[0] - swept[0]) / whole, 2),
        "per_head": round(swept[0] / whole / each, 3),
    }


if __name__ == "__main__":
    main()

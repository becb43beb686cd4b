"""Count the forward passes of every analysis on the bundled model, for the costs that are stated.

``python -P benchmarks/passes.py`` runs every analysis with its default options and prompts, and
writes ``passes.json`` in ``analyses/_runtime``, see ``expected_work.Row`` there. Only the time
beside the passes hangs on the machine; it is written in calls of a layer. Names on the command line
count these alone.
"""

import json
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

from headscope import analyses
from headscope.analyses._interventions import ablation, causal_check, read_removal, screening
from headscope.analyses._interventions.prefix_reuse import PrefixReuse
from headscope.analyses._relevance import integrated_gradients
from headscope.analyses._relevance.perturbation import Perturbation
from headscope.analyses._runtime import cost, expected_work, pass_costs
from headscope.analyses._runtime.expected_work import share
from headscope.analyses._runtime.inputs import DEFAULT_PROMPTS, PromptSets
from headscope.analyses._runtime.runner import execute
from headscope.analyses._sparse_autoencoders import splicing
from headscope.analyses.attribution import _input, _relevance_heads, logit_attribution
from headscope.analyses.circuits import circuit_methods
from headscope.analyses.head_importance import _method_scores
from headscope.analyses.retrieval_heads import _head_masking
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model, tasks
from headscope.probes.attention import work

# Prompts of the counts beside the default one, and what is screened in place of all heads.
FEW = (expected_work.FIRST_PROMPTS, expected_work.FIRST_PROMPTS // 2)
FIRST, SAMPLE = 4, 2
# These do on their first prompts the same once for every layer.
BY_LAYER = {"block_influence"}


def main() -> None:
    """Count, and write the table as it grows."""
    file = Path(expected_work.__file__).with_name("passes.json")
    table = json.loads(file.read_text()) if file.exists() else {}
    model = load_model("headscope/bundled")
    prompts = tasks.make("story", model.tokenizer, DEFAULT_PROMPTS)
    execute("entropy", model, prompts)  # the first capture checks the model
    for name in sys.argv[1:] or analyses.names():
        try:
            table[name] = row(name, model, prompts)
        except NotApplicable as refusal:
            table[name] = {"why": str(refusal)}
        else:
            write(table, file)
            table[name] |= rest(name, model, prompts)
        write(table, file)
        print(name, table[name], flush=True)


def write(table, file):
    """Write the table, and have it read again."""
    lines = ",\n".join(f'"{name}": {json.dumps(table[name])}' for name in sorted(table))
    file.write_text(f"{{\n{lines}\n}}\n")
    expected_work.rows.cache_clear()


def rest(name, model, prompts):
    """Return the time of an analysis beside its passes."""
    with patch.object(pass_costs, "time", SimpleNamespace(perf_counter=time.process_time)):
        [stated] = cost.estimate([name], model, prompts)
        call = pass_costs.measure(model, []).call
    start = time.process_time()
    execute(name, model, prompts)
    return {"rest": max(0, round((time.process_time() - start - stated.seconds) / call))}


def row(name, model, prompts):
    """Return the row of an analysis."""
    number = getattr(analyses.load(name), "PROMPTS", DEFAULT_PROMPTS)
    fixed, deep, swept, largest, unembedded = count(name, model, prompts, None)
    result = {
        "fixed": fixed,
        "deep": deep,
        "per_head": swept[0] / share(model.layers) / heads(model),
    }
    with suppress(NotApplicable):  # too few prompts for some
        if number > FEW[0]:
            (few, _, few_swept, *_), (fewer, *_) = (count(name, model, prompts, n) for n in FEW)
            part = (few - fixed) / (1 - FEW[0] / number)
            kind = "each" if fewer[0] - few[0] > part[0] / 2 > 0.02 else "first"
            result |= {"fixed": few - part, kind: part}
            if few_swept[0] > 2 * swept[0]:
                result["per_head_each"] = result["per_head"] * number / FEW[0]
    if "exhaustive" in analyses.options(name):
        with patch.multiple(screening, FEW=0, FIRST=FIRST, SAMPLE=SAMPLE), ExitStack() as stack:
            # These have a name of their own for it.
            for module in (_method_scores, _relevance_heads, logit_attribution):
                stack.enter_context(patch.object(module, "FIRST", FIRST))
            result["screened"], _, screened, *_ = count(name, model, prompts, None)
        chosen = screened[0] / swept[0] * heads(model)
        result["ranked"] = max((chosen - SAMPLE) / FIRST, 1)
    result["layers"] = len(model.geometry.attending) * (name in BY_LAYER or deep.any())
    result |= {"most": largest, "head_positions": unembedded[0], "head_rows": unembedded[1]}
    if result["per_head"]:
        # Passes as a share of those where every ablation runs alone.
        alone = swept[2] / (result["per_head"] * heads(model) * share(model.layers))
        result["singles"] = np.clip((model.heads * alone - 1) / (model.heads - 1), 0, 1)
        result["sweep_positions"] = swept[3] / result["per_head"] / heads(model)
    if "per_head_each" in result:
        del result["per_head"]
    return {key: np.round(value, 3).tolist() for key, value in result.items() if np.any(value)}


def heads(model):
    """Return the number of heads."""
    return len(model.geometry.attending) * model.heads


def count(name, model, prompts, number):
    """Return work outside sweeps, what grows with depth, in sweeps, the largest pass, and the rest.

    The rest is what no pass unembeds.
    """
    prompts = prompts if number is None else replace(prompts, prompts=prompts.prompts[:number])
    fixed, deep, swept = np.zeros(4), np.zeros(4), np.zeros(4)
    # Sets of a causal check are as many in any model.
    sums = {"": fixed, "causal check": fixed, "deep": deep, "sweep": swept}
    inside = [""]
    largest, running, unembedded_rows = [0], [], [0]

    def counted(tokens, backward):
        if inside[-1] in sums:
            sums[inside[-1]][:3] += work.weight(tokens, backward), tokens * backward, 1
        if inside[-1] in (*sums, "replaced") and inside[-1] != "sweep":
            largest[0] = max(largest[0], tokens)

    def unembedded(part, inputs, logits):
        if not running:
            unembedded_rows.append(logits.shape[:-1].numel())
        elif inside[-1] in sums:
            sums[inside[-1]][3] += logits.shape[:-1].numel()

    def marked(function, mark):
        def call(*arguments, **options):
            inside.append("causal check" if "causal check" in inside and mark == "sweep" else mark)
            try:
                return function(*arguments, **options)
            finally:
                inside.pop()

        return call

    module = model.module
    with (
        module.get_output_embeddings().register_forward_hook(unembedded),
        module.register_forward_pre_hook(lambda *_: running.append(1)),
        module.register_forward_hook(lambda *_: running.clear(), always_call=True),
        patch.object(causal_check, "compare", marked(causal_check.compare, "causal check")),
        patch.object(
            integrated_gradients, "integrate", marked(integrated_gradients.integrate, "deep")
        ),
        patch.object(  # what `replaced_passes` says
            Perturbation, "scores", marked(Perturbation.scores, "replaced")
        ),
        patch.object(_input, "replacement_effect", marked(_input.replacement_effect, "replaced")),
        patch.object(splicing, "losses", marked(splicing.losses, "causal check")),
        patch.object(_head_masking, "curve", marked(_head_masking.curve, "causal check")),
        patch.object(read_removal, "metric_with", marked(read_removal.metric_with, "causal check")),
        patch.object(ablation, "sweep", marked(ablation.sweep, "sweep")),
        patch.object(  # of other models
            circuit_methods, "measure_known", marked(circuit_methods.measure_known, "known")
        ),
        patch.object(PromptSets, "_capture", marked(PromptSets._capture, "capture")),
        patch.object(PrefixReuse, "_agrees", marked(PrefixReuse._agrees, "check")),
        work.counting(counted),
    ):
        execute(name, model, prompts, n=number)
    sets = PromptSets(model, prompts, None, None, number, 0)
    lengths = list(map(len, sets.ids(name)))
    if hasattr(analyses.load(name), "replaced_passes"):
        defaults = {key: option.default for key, option in analyses.options(name).items()}
        runs = analyses.load(name).replaced_passes(model, sets.drawn(name), **defaults)
        lengths = [tokens for tokens, _ in runs]
    layers, total = len(model.geometry.attending), sum(lengths)
    units = np.array([layers * total, layers * total, layers, total])
    fixed[2] /= len(lengths)
    deep[2] /= len(lengths)
    swept[2] /= len(set(lengths))
    direct = np.array([sum(unembedded_rows) / total, max(unembedded_rows)]) / heads(model)
    return fixed / units, deep / units, swept / units, largest[0] / max(lengths), direct


if __name__ == "__main__":
    main()

"""Choosing again, layer by layer, with the others as they are.

A layer is chosen while what lies behind is still whole. Once that is chosen too, some outputs of its consumers are gone
and need no longer be served: from the neurons that stayed, pairs are swapped while the error of what is left falls, and
everything is refitted with what follows. A new choice is taken only if the model's outputs come nearer to the original
on rows that were not fitted. Refitting alone, without a new choice, would change nothing in a chain.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from onnx import ModelProto

from onnxdpp.job import Job
from onnxdpp.judging import Judge
from onnxdpp.planning import Plan
from onnxdpp.pruning import execute
from onnxdpp.report import LayerResult


def swept(job: Job, todo: Plan, results: Sequence[LayerResult]) -> tuple[Plan, str]:
    """The plan with what stays decided: what stayed, and in up to `options.sweeps` rounds what does better.

    Parameters
    ----------
    job : Job
    todo : Plan
    results : sequence of LayerResult
        What became of it.

    Returns
    -------
    Plan, str
        `todo` itself where nothing was gained; and one line on what was.
    """

    def tried(plan: Plan) -> tuple[ModelProto, list[LayerResult]]:
        model, found, _ = execute(job, plan, hold_out=True)
        return model, found

    chosen = [tuple(result.keep or ()) for result in results]
    targets = [
        replace(target, k=len(keep), keep=keep, own_size=False)
        for target, keep in zip(todo.targets, chosen, strict=True)
    ]
    plan = replace(todo, targets=tuple(targets))
    judge = Judge(job.graph, job.batches, job.provider, job.options.mask)
    first = best = judge.judge(tried(plan)[0])
    taken = count = 0
    for _ in range(job.options.sweeps if best is not None else 0):
        before = taken
        for number, target in enumerate(plan.targets):
            if target.k == target.part.n:
                continue
            begun = replace(target, keep=None, start=target.keep)
            others = (*plan.targets[:number], begun, *plan.targets[number + 1 :])
            model, found = tried(replace(plan, targets=others))
            keep = tuple(found[number].keep or ())
            judgement = judge.judge(model) if keep != target.keep else None
            count += 1
            if judgement is not None and best is not None and judgement.distance < best.distance:
                best, taken = judgement, taken + 1
                decided = (*plan.targets[:number], replace(target, keep=keep), *plan.targets[number + 1 :])
                plan = replace(plan, targets=decided)
        if taken == before:
            break
    gain = ""
    if first is not None and best is not None and math.isfinite(first.discrepancy):
        gain = f": {first.discrepancy:.4g} to {best.discrepancy:.4g} on rows held out"
    return plan if taken else todo, f"Sweeps took {taken} of {count} new choices{gain}."

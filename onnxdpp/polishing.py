"""Weights moved once more, so that the pruned model's *outputs* come near to the original's: Gauss-Newton, no labels.

Every refit serves the next layer: it makes what the consumers compute as it was, all of it alike, and never touches the
weights into the neurons that stay. What the outputs make of it, behind all that follows, it does not see. Polishing
does: projection after projection, front to back, and round after round, it moves weights and bias by a Gauss-Newton
step (`algebra.gauss_newton`) towards the original's outputs. The derivatives come from forward runs of the part behind,
each output of the projection moved by itself, so that any graph will do (`derivatives`). A step is taken only if the
outputs come nearer on rows that no step was fitted to: the worst of them, and the softmax of scores of classes, by the
product of what is left of both; and never so that the worst output ends further away than it was before all steps.
What `target_discrepancy` asks for is measured once more in the end, and all steps are undone where they would miss it.

Polished are the projections of layers that were pruned: those that compute one position for each row of data; and
convolutions, or layers of tokens, with no more weights than numbers that tell of them, since every single weight has to
be moved there. What would take too many multiplications is left alone (`derivatives`). Weights that are zero stay zero
where edges were pruned, and no step makes the model larger.
"""

import numpy as np
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxdpp.derivatives import LEAST_ROWS, derivatives
from onnxdpp.errors import DataError, ModelError
from onnxdpp.evaluation import compare
from onnxdpp.forms import answering_form
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.picks import OtherFour
from onnxdpp.graph.projections import Projection, find_projections
from onnxdpp.graph.rewriting import Edits, apply, reweighted
from onnxdpp.graph.scratch import Scratch
from onnxdpp.job import Job
from onnxdpp.judging import Judge, Judgement
from onnxdpp.lacking import NO_DIVERGENCE
from onnxdpp.observation import original_weights
from onnxdpp.planning import Plan

LENGTHS = (1.0, 0.3)
"""Of each step: where the model is curved, a part of it may do better."""


def polished(job: Job, pruned: ModelProto, todo: Plan, scratch: Scratch) -> tuple[ModelProto, str]:
    """A pruned model whose outputs are nearer to the original's, and one line on what was gained.

    Parameters
    ----------
    job : Job
        `options.polish`: rounds at most; fewer where one gains nothing.
    pruned : ModelProto
        Not changed; returned as it is where nothing can be gained.
    todo : Plan
        What was pruned.
    scratch : Scratch
        Where new weights are put instead of into memory; it must outlive the result.
    """
    judge = Judge(job.graph, job.batches, job.provider, job.options.mask)
    rows = OtherFour(job.batches.rows).count
    if rows < LEAST_ROWS:
        return pruned, f"Nothing could be polished: it takes {LEAST_ROWS} rows to fit, and there are {rows}."
    begun = pruned
    first = best = judge.judge(pruned)
    if first is None or best is None or not np.isfinite(first.discrepancy):
        return pruned, "Nothing could be polished: no output can be compared."
    rounds, folder = job.options.polish, job.graph.folder
    original = Session(job.graph.model, job.provider, folder)
    taken = tried = 0
    with threadpool_limits(1):
        for number in range(rounds):
            before = taken
            names = [part.name for part in _movable(Graph(pruned, folder), todo)]
            for place, name in enumerate(names):
                job.progress("polish", (number + place / len(names)) / rounds)
                now = Graph(pruned, folder)
                candidates = _candidates(job, original, now, name)
                nearest = None
                for edits in candidates or ():
                    found = judge.judge(apply(now, edits))
                    if found is None or found.discrepancy > first.discrepancy:
                        continue
                    if _merit(found) < _merit(best):
                        best, nearest = found, edits
                tried += candidates is not None
                if nearest is not None:
                    pruned = apply(now, scratch.added(nearest))
                    taken += 1
            if taken == before:
                break
    job.progress("polish", 1.0)
    if not tried:
        return (
            pruned,
            "Nothing could be polished: rows of data are not rows of the outputs, something is not finite, "
            "or the layers have more weights than can be told from the data (see docs/method.md, Polishing).",
        )
    if taken and not _near_enough(job, pruned):
        return begun, f"Polishing was undone: with {taken} steps the outputs would miss the target."
    gain = f"discrepancy {first.discrepancy:.4g} to {best.discrepancy:.4g} on rows that no step was fitted to"
    return pruned, f"Polishing took {taken} of {tried} steps: {gain}."


def _near_enough(job: Job, model: ModelProto) -> bool:
    """Whether a model keeps to the discrepancy asked for, as that is measured: the judge looks at fewer rows."""
    goal = job.options.target_discrepancy
    if goal is None or job.judged is None:
        return True
    form = answering_form(model, job.graph.folder, job.options.storage, job.options.values)
    return compare(job.graph, form.dense, job.judged, job.provider, mask=job.options.mask).worst <= goal


def _movable(graph: Graph, todo: Plan) -> list[Projection]:
    """The projections of pruned layers: those that read their neurons, and those that make them."""
    names = {part.name for target in todo.targets for part in target.consumers}
    for target in todo.targets:
        if isinstance(target.part, Layer):
            names |= set(target.part.members)
    return [part for part in find_projections(graph)[0] if part.name in names]


def _candidates(job: Job, original: Session, graph: Graph, name: str) -> list[Edits] | None:
    """Edits that move one projection, from tame to bold; None where its derivatives cannot be had."""
    part = next(part for part in find_projections(graph)[0] if part.name == name)
    weights = original_weights(graph, part)
    free = weights != 0 if job.options.unit == "edge" else None
    intercept = _has_own_bias(graph, part)
    try:
        found = derivatives(original, graph, part, job.batches, job.provider, free, intercept, job.options.mask)
    except (ModelError, DataError):  # onnxruntime does not take the part behind by itself
        return None
    if found is None:
        return None
    moved = []
    for matrix, bias in found.steps():
        try:
            moved += [
                reweighted(graph, part, weights + length * matrix, None if bias is None else length * bias)
                for length in LENGTHS
            ]
        except (ModelError, DataError):  # it does not fit into the type of the weights
            break
    return moved


def _has_own_bias(graph: Graph, part: Projection) -> bool:
    """Whether an intercept costs nothing: one entry for all outputs would be spread, a shared bias copied."""
    if part.bias is None or graph.shared_with(part.bias.use) is not None:
        return False
    bias = graph.array(graph.name_at(part.bias.use))
    return bias is not None and bias.ndim > 0 and bias.shape[-1] == part.m


def _merit(judgement: Judgement) -> float:
    """The smaller, the nearer. The divergence is of the order of a square; what may be rounding of it counts alike."""
    if judgement.divergence is None:
        return judgement.discrepancy
    return float(np.sqrt(judgement.discrepancy * np.sqrt(max(judgement.divergence, NO_DIVERGENCE))))

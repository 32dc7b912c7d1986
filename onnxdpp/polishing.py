"""Weights moved once more, so that the pruned model's *outputs* come near to the original's: Gauss-Newton, no labels.

Every refit serves the next layer: it makes what the consumers compute as it was, all of it alike, and never touches the
weights into the neurons that stay. What the outputs make of it, behind all that follows, it does not see. Polishing
does: projection after projection, front to back, and round after round, it moves weights and bias by a Gauss-Newton
step (`algebra.gauss_newton`) towards the original's outputs. The derivatives come from forward runs of the part behind,
each output of the projection moved by itself, so that any graph will do. A step is taken only if the worst output comes
nearer on rows that no step was fitted to, and the softmax of outputs that may be scores of classes does too.

Polished are the projections (Gemm and MatMul) of layers that were pruned, where each row of data is one row of the
outputs of the projection: not convolutions, nor what is computed for each of many tokens. Weights that are zero stay
zero where edges were pruned.
"""

import numpy as np
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxdpp.algebra.gauss_newton import steps
from onnxdpp.derivatives import derivatives
from onnxdpp.errors import OnnxdppError
from onnxdpp.graph.batches import Batches
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.projections import Projection, find_projections
from onnxdpp.graph.rewriting import apply, reweighted
from onnxdpp.graph.scratch import Scratch
from onnxdpp.judging import Judge, Judgement
from onnxdpp.observation import original_weights
from onnxdpp.options import Options
from onnxdpp.planning import Plan
from onnxdpp.pruning import Progress


def polished(
    graph: Graph,
    pruned: ModelProto,
    todo: Plan,
    options: Options,
    batches: Batches,
    provider: str,
    progress: Progress,
    scratch: Scratch,
) -> tuple[ModelProto, str]:
    """A pruned model whose outputs are nearer to the original's, and one line on what was gained.

    Parameters
    ----------
    graph : Graph
        The original.
    pruned : ModelProto
        Not changed; returned as it is where nothing can be gained.
    todo : Plan
        What was pruned.
    options : Options
        `polish`: rounds at most; fewer where one gains nothing.
    batches : Batches
    provider : {"cpu", "cuda"}
    progress : callable (text, fraction)
    scratch : Scratch
        Where new weights are put instead of into memory; it must outlive the result.
    """
    judge = Judge(graph, batches, provider, options.mask)
    first = best = judge.judge(pruned)
    taken = tried = 0
    with threadpool_limits(1):
        for number in range(options.polish if best is not None and np.isfinite(best.discrepancy) else 0):
            before = taken
            names = [part.name for part in _movable(Graph(pruned, graph.folder), todo)]
            for place, name in enumerate(names):
                progress("polish", (number + place / len(names)) / options.polish)
                run = _Step(graph, Graph(pruned, graph.folder), name, options, batches, provider)
                nearer = run.taken(judge, best, scratch)
                tried += run.possible
                if nearer is not None:
                    pruned, best = nearer
                    taken += 1
            if taken == before:
                break
    if first is None or best is None or not tried:
        return (
            pruned,
            "Nothing could be polished: no projection of a pruned layer computes one row for each row of data.",
        )
    gain = f"discrepancy {first.discrepancy:.4g} to {best.discrepancy:.4g} on rows held out"
    return pruned, f"Polishing took {taken} of {tried} steps: {gain}."


def _movable(graph: Graph, todo: Plan) -> list[Projection]:
    """The projections of pruned layers: those that read their neurons, and those that make them."""
    names = {part.name for target in todo.targets for part in target.consumers}
    for target in todo.targets:
        if isinstance(target.part, Layer):
            names |= set(target.part.members)
    found, _ = find_projections(graph)
    return [part for part in found if part.name in names and part.patch is None]


class _Step:
    """One projection to be moved.

    Attributes
    ----------
    possible : bool
        Whether its derivatives could be had; known after `taken`.
    """

    def __init__(
        self, original: Graph, graph: Graph, name: str, options: Options, batches: Batches, provider: str
    ) -> None:
        self.possible = False
        self._original = original
        self._graph = graph
        self._part = next(part for part in find_projections(graph)[0] if part.name == name)
        self._edges = options.unit == "edge"
        self._batches = batches
        self._provider = provider

    def taken(self, judge: Judge, best: Judgement | None, scratch: Scratch) -> tuple[ModelProto, Judgement] | None:
        """The model after the best step, and how far it is; None where none comes nearer."""
        try:
            found = derivatives(self._original, self._graph, self._part, self._batches, self._provider)
        except OnnxdppError:  # onnxruntime does not take the part behind by itself
            return None
        if found is None or best is None:
            return None
        self.possible = True
        part, nearest = self._part, None
        weights = original_weights(self._graph, part)
        free = weights != 0 if self._edges else None
        for matrix, bias in steps(*found, free, intercept=part.bias is not None):
            try:
                edits = reweighted(self._graph, part, weights + matrix, bias)
            except OnnxdppError:  # it does not fit into the type of the weights
                break
            judgement = judge.judge(apply(self._graph, edits))
            if judgement is not None and _nearer(judgement, best):
                best, nearest = judgement, edits
        return None if nearest is None else (apply(self._graph, scratch.spilled(nearest)), best)


def _nearer(new: Judgement, old: Judgement) -> bool:
    """By the worst output, and by what the classes are, where outputs are scores of classes."""
    if new.divergence is not None and old.divergence is not None and new.divergence > old.divergence:
        return False
    return new.discrepancy < old.discrepancy

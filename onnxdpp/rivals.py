"""``auto`` beside single methods from end to end, where whole runs cost little.

The contest takes layer after layer what answers best while the layers behind are still whole. Where layers are narrow,
what is lost behind depends on what was kept before, and one method throughout may come nearer: over the networks of
others in ``samples/selection/others.md``, most of the gaps of the contest were there. So where no layer is wider than
`NARROW`, the contest and each of `RIVALS` prune the model on up to `ROWS` rows. A rival whose worst output is nearer to
the original's on rows held out by more than a factor of `CLEAR` prunes the model in the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxdpp.graph.batches import Batches
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.scratch import Scratch
from onnxdpp.judging import Judge, Judgement
from onnxdpp.options import Options
from onnxdpp.planning import Plan
from onnxdpp.pruning import Progress, execute
from onnxdpp.sensitivity import Sensitivity

NARROW = 128
"""Neurons of the widest layer with which whole runs are made."""
ROWS = 5000
CLEAR = 1.05
"""How many times the discrepancy of the best rival that of the contest may be: what is closer may be noise."""
RIVALS = (("dpp", "linear"), ("obs", "rbf"), ("omp", "rbf"), ("fluctuation", "rbf"))


@dataclass(frozen=True)
class Rival:
    """A whole run and what it came to.

    Attributes
    ----------
    method, kernel : str
    judgement : Judgement
    taken : bool
    """

    method: str
    kernel: str
    judgement: Judgement
    taken: bool

    def as_dict(self) -> dict[str, object]:
        """As reports have it."""
        return {
            "method": self.method,
            "kernel": self.kernel if self.method == "dpp" else None,
            "discrepancy": self.judgement.discrepancy if math.isfinite(self.judgement.discrepancy) else None,
            "divergence": self.judgement.divergence,
            "taken": self.taken,
        }


def rivalled(
    graph: Graph,
    todo: Plan,
    options: Options,
    batches: Batches,
    provider: str,
    progress: Progress,
    sensitivity: Sensitivity,
) -> tuple[Options, list[Rival]]:
    """The options with the method that a model is pruned with in the end, and what was tried.

    Parameters
    ----------
    graph : Graph
        The original.
    todo : Plan
    options : Options
    batches : Batches
    provider : {"cpu", "cuda"}
    progress : callable (text, fraction)
    sensitivity : Sensitivity

    Returns
    -------
    Options, list of Rival
        `options` itself and nothing tried, where it is not `auto` that chooses neurons of narrow layers.
    """
    if not _asked(todo, options):
        return options, []
    few = batches.thinned(ROWS)
    judge = Judge(graph, few, provider, options.mask)
    tried, judgements = [], []
    for own in (options, *(_alone(options, *rival) for rival in RIVALS)):
        model = execute(graph, todo, own, few, provider, progress, Scratch(active=False), sensitivity, hold_out=True)[0]
        judgement = judge.judge(model)
        if judgement is None:
            return options, []
        tried.append(own)
        judgements.append(judgement)
    distances = [judgement.discrepancy for judgement in judgements]
    best = min(range(len(tried)), key=distances.__getitem__)
    if distances[0] <= CLEAR * distances[best]:
        best = 0
    found = zip(tried, judgements, strict=True)
    return tried[best], [
        Rival(own.method, own.kernel, judgement, number == best) for number, (own, judgement) in enumerate(found)
    ]


def told(rivals: Sequence[Rival]) -> str | None:
    """One line where a single method won."""
    winner = next((rival for rival in rivals[1:] if rival.taken), None)
    if winner is None:
        return None
    return (
        f"One method throughout, {winner.method}, answers nearer to the original on rows held out than the best of "
        f"each layer: discrepancy {winner.judgement.discrepancy:.4g}, {rivals[0].judgement.discrepancy:.4g}."
    )


def _asked(todo: Plan, options: Options) -> bool:
    widths = [target.part.n if isinstance(target.part, Layer) else NARROW + 1 for target in todo.targets]
    whole = options.method == "auto" and options.refit != "none" and options.apply is None and options.keep != "auto"
    return whole and max(widths, default=0) <= NARROW and options.target_discrepancy is None


def _alone(options: Options, method: str, kernel: str) -> Options:
    return replace(options, method=method, kernel=kernel, sensitivity=False)

"""``auto`` beside single methods from end to end, where whole runs cost little.

The contest takes layer after layer what answers best while the layers behind are still whole. Where layers are narrow,
what is lost behind depends on what was kept before, and one method throughout may come nearer: over the networks of
others in ``samples/selection/others.md``, most of the gaps of the contest were there. So where no layer is wider than
`NARROW`, and no consumer than `INPUTS`, the contest and each of `RIVALS` prune the model on up to `ROWS` rows. A rival
whose worst output is nearer to the original's on rows held out by more than a factor of `CLEAR` prunes the model in the
end.
"""

import math
from dataclasses import dataclass, replace

from onnxdpp.errors import DataError, ModelError
from onnxdpp.graph.batches import HELD_OUT
from onnxdpp.graph.layers import Layer
from onnxdpp.job import Job
from onnxdpp.judging import Judge, Judgement
from onnxdpp.options import Options
from onnxdpp.planning import Plan, Target
from onnxdpp.pruning import execute

NARROW = 128
"""Neurons of the widest layer with which whole runs are made."""
INPUTS = 1024
"""Of the widest consumer: an image that is flattened costs more than the layer's width says."""
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


def rivalled(job: Job, todo: Plan) -> tuple[Job, list[Rival]]:
    """The job with the method that a model is pruned with in the end, and what was tried.

    Parameters
    ----------
    job : Job
    todo : Plan

    Returns
    -------
    Job, list of Rival
        `job` itself and nothing tried, where it is not `auto` that chooses neurons of narrow layers, or where the
        rows cannot tell. A method that fails is not taken.
    """
    if not _asked(todo, job.options) or job.batches.rows < HELD_OUT:
        return job, []
    few = job.batches.thinned(ROWS)
    judge = Judge(job.graph, few, job.provider, job.options.mask)
    tried = [job, *(_alone(job, *rival) for rival in RIVALS)]
    judgements = []
    for number, own in enumerate(tried):
        job.progress("whole runs", number / len(tried))
        try:
            judgement = whole_run(replace(own, batches=few), todo, judge)
        except (ModelError, DataError):  # it may be well on all rows, and then that run says why it is not
            judgement = Judgement(math.inf, None) if number else None
        if judgement is None:
            return job, []
        judgements.append(judgement)
    job.progress("whole runs", 1.0)
    distances = [judgement.discrepancy for judgement in judgements]
    best = min(range(len(tried)), key=distances.__getitem__)
    if distances[0] <= CLEAR * distances[best]:
        best = 0
    return tried[best], [
        Rival(own.options.method, own.options.kernel, judgement, number == best)
        for number, (own, judgement) in enumerate(zip(tried, judgements, strict=True))
    ]


def whole_run(job: Job, todo: Plan, judge: Judge) -> Judgement | None:
    """What comes of a plan, on rows held out; None where nothing can be compared. Raises as `execute` does."""
    return judge.judge(execute(replace(job, progress=lambda text, fraction: None), todo, hold_out=True)[0])


def _asked(todo: Plan, options: Options) -> bool:
    whole = options.method == "auto" and options.refit != "none" and options.apply is None and options.keep != "auto"
    less = any(target.k < target.part.n for target in todo.targets)
    return whole and less and options.target_discrepancy is None and all(map(_is_small, todo.targets))


def _is_small(target: Target) -> bool:
    """Whether it is a layer of neurons on which little time is spent."""
    narrow = isinstance(target.part, Layer) and target.part.n <= NARROW
    return narrow and all(part.n <= INPUTS for part in target.consumers)


def _alone(job: Job, method: str, kernel: str) -> Job:
    return replace(job, options=replace(job.options, method=method, kernel=kernel, sensitivity=False))

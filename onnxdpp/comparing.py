"""Methods side by side: each prunes a model to the same sizes, and all are judged on the same rows.

Those rows are never fitted: they are other data, or every fifth calibration row, which no run then fits. `random` is
always among the methods: one that does not beat it does nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from numbers import Integral, Real

from onnx import ModelProto

from onnxdpp.algebra.selection import METHODS
from onnxdpp.curves import Run
from onnxdpp.errors import DataError, ModelError, UsageError
from onnxdpp.evaluation import parameters
from onnxdpp.graph.external import has_external_data
from onnxdpp.graph.scratch import Scratch
from onnxdpp.job import Job
from onnxdpp.matching import matched
from onnxdpp.options import UNITS
from onnxdpp.planning import Plan, plan
from onnxdpp.pruning import execute
from onnxdpp.rivals import rivalled

KEEPS = (0.9, 0.7, 0.5, 0.3, 0.1, 0.05, 0.02)
REPEAT = 5
DRAWN = ("dpp-sample", "random")
"""Methods whose choice depends on the seed: only these are repeated."""


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes
    ----------
    keeps : tuple of float
        From large to small, each once.
    methods : tuple of str
        Each once, `random` among them.
    units : tuple of {"neuron", "edge"}
    repeat : int
        With how many seeds a method that draws runs.
    match : {None, "parameters"}
    """

    keeps: tuple[float, ...]
    methods: tuple[str, ...]
    units: tuple[str, ...]
    repeat: int
    match: str | None

    @classmethod
    def of(
        cls, keeps: Iterable[float], methods: Iterable[str], unit: str, repeat: int, match: str | None
    ) -> "Question":
        """What is asked for, checked and put in order."""
        if not isinstance(keeps, Iterable):
            raise UsageError(f"keep is {keeps!r}; it must be several fractions, such as [0.9, 0.5].")
        keeps, methods = tuple(keeps), tuple(methods)
        for keep in keeps:
            if not isinstance(keep, Real) or not 0 < keep <= 1:
                raise UsageError(f"keep has {keep!r} in it; each must be above 0 and at most 1: what stays.")
        for method in methods:
            if method not in (known := ("auto", *METHODS)):
                raise UsageError(f"method has {method!r} in it; each can be {', '.join(known)}.")
        if not keeps:
            raise UsageError("keep is empty; give at least one fraction.")
        if unit not in (*UNITS, "both"):
            raise UsageError(f"unit is {unit!r}; it can be {', '.join(UNITS)}, both.")
        if not isinstance(repeat, Integral) or repeat < 1:
            raise UsageError(f"repeat is {repeat!r}; it must be a whole number of at least 1.")
        if match not in (None, "parameters"):
            raise UsageError(f"match is {match!r}; it can be parameters.")
        if match is not None and unit != "both":
            raise UsageError("Parameters are matched between neurons and edges. Add --unit both, or leave --match out.")
        return cls(
            tuple(sorted({float(keep) for keep in keeps}, reverse=True)),
            tuple(dict.fromkeys((*methods, "random"))),
            UNITS if unit == "both" else (unit,),
            int(repeat),
            match,
        )

    @property
    def cells(self) -> list[tuple[str, str, float, int]]:
        """Unit, method, keep and seed of each run."""
        return [
            (unit, method, keep, seed)
            for unit, method, keep in product(self.units, self.methods, self.keeps)
            for seed in range(self.repeat if method in DRAWN else 1)
        ]


def parse_keeps(text: str) -> tuple[float, ...]:
    """Fractions, from ``F,F,...``.

    >>> parse_keeps("0.9, 0.5,0.1")
    (0.9, 0.5, 0.1)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"keep is {text!r}; it must be fractions with commas between, such as 0.9,0.5,0.1.") from None


def make_runs(
    job: Job, question: Question, measure: Callable[[ModelProto], float], *, hold_out: bool
) -> tuple[list[Run], list[str]]:
    """Prune the model again and again.

    Parameters
    ----------
    job : Job
        Its options are what all runs have in common.
    question : Question
    measure : callable
        The error of a pruned model.
    hold_out : bool
        Whether every fifth row stays out of all fits.

    Returns
    -------
    list of Run, list of str
        In the order of unit, method, keep, seed; and which of them failed, and why, among other notices.

    Raises
    ------
    ModelError, DataError
        Why the last run failed, if all did.
    """
    quiet = replace(job, progress=lambda text, fraction: None)
    plans = dict(_plans(quiet, question))
    runs: list[Run] = []
    failed: list[tuple[str, ModelError | DataError]] = []
    for unit, method, keep, seed in (cells := question.cells):
        what = f"{unit} {method} keep {keep:g} seed {seed}"
        job.progress(what, len(runs) / len(cells))
        started = time.perf_counter()
        todo, size, error = plans[unit, keep], None, None
        weighed = method == "auto" and unit == "neuron"
        own = replace(job.options, keep=keep, unit=unit, method=method, seed=seed, sensitivity=weighed)
        scratch = Scratch(active=has_external_data(job.graph.model))
        try:
            chosen, _ = rivalled(replace(quiet, options=own), todo)
            model, _, _ = execute(chosen, todo, scratch=scratch, hold_out=hold_out)
            error = measure(model)
            size = parameters(model, job.graph.folder)[1]
        except (ModelError, DataError) as caught:
            failed.append((what, caught))
        kept = {target.name: target.k for target in todo.targets}
        runs.append(Run(unit, method, keep, seed, kept, size, error, time.perf_counter() - started))
    if len(failed) == len(runs):
        raise failed[-1][1]
    return runs, [*(f"The run {what} failed: {caught}" for what, caught in failed), *job.sensitivity.notices]


def _plans(job: Job, question: Question) -> Iterator[tuple[tuple[str, float], Plan]]:
    """What stays, for each unit and keep: made before the first run, so that what cannot be is known early."""
    for keep in question.keeps:
        own = {unit: replace(job.options, keep=keep, unit=unit) for unit in question.units}
        todo = {unit: plan(job.graph, own[unit]) for unit in question.units}
        if question.match is not None:
            todo["neuron"] = matched(replace(job, options=own["neuron"]), todo["neuron"], todo["edge"])
        yield from (((unit, keep), found) for unit, found in todo.items())

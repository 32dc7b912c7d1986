"""The Python interface of `onnxdpp compare`: methods side by side, each to the same sizes, judged on the same rows.

Those rows are never fitted, and no candidate is chosen by them: they are other data, or every fifth calibration row,
which then no run sees. `random` is always among the methods: one that does not beat it does nothing.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from numbers import Integral, Real
from typing import Any

from onnx import ModelProto

from onnxdpp.algebra.selection import METHODS
from onnxdpp.curves import CLASSIFICATION, DISTANCE, HELD_OUT_ROWS, Comparison, Run
from onnxdpp.errors import DataError, ModelError, UsageError
from onnxdpp.evaluation import compare, parameters
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.calibration import choose_provider
from onnxdpp.graph.external import has_external_data
from onnxdpp.graph.index import Graph
from onnxdpp.graph.padding import check_mask
from onnxdpp.graph.rewriting import in_order
from onnxdpp.graph.scratch import Scratch
from onnxdpp.job import Job
from onnxdpp.labelled import classification_error, open_labelled
from onnxdpp.matching import matched
from onnxdpp.opening import Data, Model, Progress, named, opened, size_of, versions
from onnxdpp.options import UNITS, Options, listed, parse_layer
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


def make_runs(job: Job, question: Question, measure: Callable[[ModelProto], float]) -> tuple[list[Run], list[str]]:
    """Prune the model again and again.

    Parameters
    ----------
    job : Job
        Its options are what all runs have in common.
    question : Question
    measure : callable
        The error of a pruned model.

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
            model, _, _ = execute(chosen, todo, scratch=scratch)
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


def compare_methods(
    model: Model,
    calib: Data,
    *,
    keeps: Iterable[float] = KEEPS,
    methods: Iterable[str] | None = None,
    unit: str = "neuron",
    repeat: int = REPEAT,
    match: str | None = None,
    data: Data | None = None,
    labels: str | None = None,
    kernel: str = "rbf",
    beta: float | None = None,
    epsilon: float = 0.01,
    refit: str = "affine",
    layers: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
    provider: str = "auto",
    max_rows: int | None = None,
    mask: str | None = None,
    progress: Progress = lambda text, fraction: None,
) -> dict[str, Any]:
    """Methods side by side: the error of a model pruned by each, against the parameters that are left.

    Parameters
    ----------
    model, calib : as for `prune`
    keeps : iterable of float
        Fractions that stay.
    methods : iterable of str, optional
        Names as for `prune`; ``random`` is always added. Default: all (``auto`` where there is a refit).
    unit : {"neuron", "edge", "both"}
    repeat : int
        How many seeds, 0 to repeat - 1, a method that draws runs with.
    match : {"parameters"}, optional
        With both units: `keeps` are the edges', and as many neurons stay as weigh the same (see `onnxdpp.matching`).
    data : as `calib`, optional
        What the errors are measured on. Default: every fifth calibration row, which then no run sees.
    labels : str, optional
        The array in `data` that holds the class of each row, from 0 on. With it, an error is the share of rows that are
        classified wrongly; without, the relative L2 of the worst output.
    kernel, beta, epsilon, refit, layers, skip, provider, max_rows, mask : as for `prune`
        Of all runs; `max_rows` of `calib`.
    progress : callable (text, fraction), optional

    Returns
    -------
    dict
        As the JSON Schema ``comparison`` says. `onnxdpp.plotting.figure` draws it, `onnxdpp.curves.as_csv` writes it.

    Raises
    ------
    UsageError, ModelError, DataError, NothingToPrune, MachineError
        All of them OnnxdppError; see `onnxdpp.errors`.
    """
    started = time.perf_counter()
    chosen = (METHODS if refit == "none" else ("auto", *METHODS)) if methods is None else tuple(listed(methods))
    question = Question.of(keeps, chosen, unit, repeat, match)
    options = Options(
        question.keeps[0], kernel=kernel, beta=beta, epsilon=epsilon, refit=refit,
        layers=tuple(parse_layer(text) for text in listed(layers)), skip=tuple(listed(skip)),
        provider=provider, max_rows=max_rows, mask=mask,
    )  # fmt: skip
    if any(keep is not None for _, keep in options.layers):
        raise UsageError("All layers are pruned to the same keep here. Give --layer a pattern without '='.")
    if labels is not None and data is None:
        raise UsageError("Labels belong to data that errors are measured on. Add --data, or leave --labels out.")
    proto, folder, info = opened(model)
    graph = Graph(in_order(proto), folder)
    where, notices = choose_provider(provider)
    inputs = input_specs(graph.model)
    check_mask(mask, inputs)
    batches = open_batches(calib, inputs, max_rows=options.max_rows)
    if data is None:
        fitted, judged = batches.parted("--data")
    else:
        fitted, judged = batches, open_labelled(data, inputs, labels)

    def error(pruned: ModelProto) -> float:
        if labels is not None:
            return classification_error(graph, pruned, judged, labels, where, mask)
        found = compare(graph, pruned, judged, where, mask=mask, finite=True).worst
        if math.isinf(found):
            raise ModelError("An output that is zero in the original is not in the pruned model.")
        return found

    unpruned = error(graph.model)
    if math.isnan(unpruned):
        raise UsageError("The model has no output that can be compared. Give --data and --labels.")
    job = Job.of(graph, options, fitted, where, progress)
    runs, told = make_runs(job, question, error)
    notices += [*batches.notices, *fitted.notices, *judged.notices, *told]
    notices = list(dict.fromkeys(notices))
    given = {
        "calib": named(calib), "data": None if data is None else named(data), "labels": labels,
        "keep": list(question.keeps), "method": list(question.methods), "unit": unit, "repeat": question.repeat,
        "match": match, "kernel": kernel, "beta": "auto" if beta is None else options.beta,
        "epsilon": options.epsilon, "refit": refit, "layers": [pattern for pattern, _ in options.layers],
        "skip": list(options.skip), "max_rows": options.max_rows,
        "mask": mask,
    }  # fmt: skip
    return Comparison(
        model=size_of(graph, info, None),
        measure=DISTANCE if labels is None else CLASSIFICATION,
        unpruned=unpruned,
        data=HELD_OUT_ROWS if data is None else named(data),
        judged_rows=judged.rows,
        rows=batches.rows,
        runs=runs,
        provider=where,
        notices=notices,
        options=given,
        versions=versions(),
        seconds=time.perf_counter() - started,
    ).as_dict()

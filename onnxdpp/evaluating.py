"""The Python interface of `onnxdpp evaluate`: two models, one data set, everything that can be said of the change."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from onnxdpp.errors import DataError, MachineError, UsageError
from onnxdpp.evaluation import Discrepancy, differences, macs_per_row
from onnxdpp.footprint import compressed, peak_memory
from onnxdpp.gates import Limits, verdicts
from onnxdpp.graph.batches import Batch, Batches, input_specs
from onnxdpp.graph.calibration import Session, choose_provider
from onnxdpp.graph.external import data_files
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import FileInfo, save_model
from onnxdpp.graph.padding import Padding, check_mask
from onnxdpp.graph.rewriting import in_order
from onnxdpp.interface import check_interface, joint
from onnxdpp.labelled import open_labelled
from onnxdpp.latency import Latency, interleaved
from onnxdpp.opening import (
    Data,
    Given,
    Model,
    Progress,
    as_given,
    counting,
    dense,
    named,
    read_report,
    size_of,
    versions,
)
from onnxdpp.options import Options
from onnxdpp.report import Evaluation

RANDOM = "The data are random: sizes and latency are real, answers are not."


def evaluate(
    original: Model,
    pruned: Model,
    data: Data,
    *,
    labels: str | None = None,
    provider: str = "auto",
    batch_size: int | None = None,
    max_rows: int | None = None,
    mask: str | None = None,
    seed: int = 0,
    threads: int = 1,
    latency: bool = True,
    memory: bool = True,
    max_discrepancy: float | None = None,
    max_accuracy_drop: float | None = None,
    min_agreement: float | None = None,
    max_size_ratio: float | None = None,
    min_speedup: float | None = None,
    baseline: Given | None = None,
    progress: Progress = lambda text, fraction: None,
) -> dict[str, Any]:
    """Compare two models with the same inputs and outputs: any two, whoever made them.

    Parameters
    ----------
    original, pruned : path or ModelProto
        Not changed.
    data : path, mapping of arrays, or iterable of mappings
        As `prune` takes for calibration; rows that were not used there say more.
    labels : str, optional
        The array of the data that holds the class of each row: whole numbers, (rows,).
    provider : {"auto", "cpu", "cuda"}
    batch_size, max_rows : int, optional
        Rows per run; rows to use, evenly spaced.
    mask : str, optional
        An input whose zeros mark padding: outputs are not compared there.
    seed : int
        Of random data.
    threads : int
        Of each session whose latency or memory is measured.
    latency, memory : bool
        Whether these are measured.
    max_discrepancy, max_accuracy_drop, min_agreement, max_size_ratio, min_speedup : float, optional
        Gates, see `onnxdpp.gates.Limits`: the findings' ``gates`` say which are passed.
    baseline : report or path of one, optional
        Of an earlier run: one more gate for each figure there.
    progress : callable (text, fraction), optional

    Returns
    -------
    dict
        As the JSON Schema ``evaluation`` says.

    Raises
    ------
    UsageError, ModelError, DataError, MachineError
        All of them OnnxdppError; see `onnxdpp.errors`.
    """
    started = time.perf_counter()
    checked = Options("auto", seed=seed, provider=provider, batch_size=batch_size, max_rows=max_rows)
    if not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads is {threads!r}; it must be a whole number, at least 1.")
    limits = Limits(
        max_discrepancy, max_accuracy_drop, min_agreement, max_size_ratio, min_speedup,
        None if baseline is None else read_report(baseline),
    )  # fmt: skip
    check_labels(limits, labels)
    if min_speedup is not None and not latency:
        raise UsageError("A gate on speed needs the latency. Leave --no-latency out, or --min-speedup.")
    # What runs, is timed and is weighed are the models as given; what is counted, what they stand for.
    (before, whole, before_info), (after, rest, after_info) = (_opened(model) for model in (original, pruned))
    where, notices = choose_provider(provider)
    one, other = (Session(graph.model, where, graph.folder) for graph in (before, after))
    check_interface(one, other)
    inputs = joint(input_specs(before.model), input_specs(after.model))
    check_mask(mask, inputs)
    rows = {"batch_size": checked.batch_size, "max_rows": checked.max_rows, "seed": checked.seed}
    batches = open_labelled(data, inputs, labels, **rows)
    found = differences(
        one,
        other,
        batches,
        counting(progress, "compare", batches.rows),
        random_values=before.random_values | after.random_values,
        counting_values=before.counting_values | after.counting_values,
        labels=labels,
        padding=Padding(before.model, mask),
    )
    del one, other
    first = next(iter(batches))
    first = replace(first, feeds={spec.name: first.feeds[spec.name] for spec in inputs})
    notices += [*batches.notices, *found.notices]
    if batches.random:
        notices.append(RANDOM)
    latencies, told = latencies_of(before, after, batches, first, where, threads, progress) if latency else ([], [])
    notices += told
    with tempfile.TemporaryDirectory(prefix="onnxdpp-") as folder:
        stored = ((original, before, "original"), (pruned, after, "pruned"))
        files = [_files(model, graph, Path(folder) / name / "model.onnx") for model, graph, name in stored]
        packed = [compressed(part) for part in files]
        taken = None
        if memory:
            try:
                taken = [asdict(peak_memory(part[0], first.feeds, where, threads)) for part in files]
            except MachineError as error:
                notices.append(f"Peak memory cannot be measured: {error}.")
    result = Evaluation(
        before=size_of(whole, before_info, macs_per_row(whole, first, where)),
        after=size_of(rest, after_info, macs_per_row(rest, first, where)),
        gzip_bytes=(packed[0], packed[1]),
        discrepancy=found.outputs,
        accuracy=found.accuracy,
        latency=[asdict(part) for part in latencies],
        memory=None if taken is None else {"before": taken[0], "after": taken[1]},
        threads=threads,
        provider=where,
        rows=batches.rows,
        random_data=batches.random,
        notices=notices,
        options={
            "original": named(original), "pruned": named(pruned), "data": named(data), "labels": labels,
            "provider": provider, **rows, "mask": mask, "threads": threads, "latency": latency, "memory": memory,
            **limits.as_given(None if baseline is None else named(baseline)),
        },
        versions=versions(),
        seconds=time.perf_counter() - started,
    ).as_dict()  # fmt: skip
    result["gates"] = verdicts(result, limits)
    return result


@dataclass(frozen=True)
class Trial:
    """Where a pruned model is tried, for the report of `prune`.

    Attributes
    ----------
    batches : Batches
    labels : str or None
        Which of the feeds are no input, but the classes of the rows.
    mask : str or None
        Which of the inputs marks padding by zeros.
    held_out : bool
        Whether they are calibration rows that are not fitted.
    known : Discrepancy or None
        Where the rows are those that were fitted: what was found on them already.
    """

    batches: Batches
    labels: str | None = None
    mask: str | None = None
    held_out: bool = False
    known: Discrepancy | None = None

    def run(
        self, before: Graph, after: Graph, provider: str, latency: bool, progress: Progress
    ) -> tuple[dict[str, Any], list[str]]:
        """The ``evaluation`` of a report, and notices: answers, accuracy and, if asked for, latency on one thread."""
        found = self.known or differences(
            Session(before.model, provider, before.folder),
            Session(after.model, provider, after.folder),
            self.batches,
            counting(progress, "evaluate", self.batches.rows),
            random_values=before.random_values,
            counting_values=before.counting_values,
            labels=self.labels,
            padding=Padding(before.model, self.mask),
        )
        first = next(iter(self.batches))
        timed, told = latencies_of(before, after, self.batches, first, provider, 1, progress) if latency else ([], [])
        notices = [*found.notices, *told]
        if not self.held_out and self.known is None:  # else they are calibration rows, of which all is told
            notices = [*self.batches.notices, *notices, *([RANDOM] if self.batches.random else [])]
        return {
            "held_out": self.held_out,
            "fitted": self.known is not None,
            "rows": self.batches.rows,
            "discrepancy": found.outputs,
            "accuracy": found.accuracy,
            "latency": [asdict(part) for part in timed],
        }, notices


def check_labels(limits: Limits, labels: str | None) -> None:
    """Refuse a gate on accuracy without labels."""
    if limits.max_accuracy_drop is not None and labels is None:
        raise UsageError("A gate on accuracy needs labels. Name the array of the data that holds them by --labels.")


def latencies_of(
    before: Graph, after: Graph, batches: Batches, batch: Batch, provider: str, threads: int, progress: Progress
) -> tuple[list[Latency], list[str]]:
    """Latency for one row, where the models take one, and for the batch; and a notice where they do not."""

    def pair(batch: Batch) -> Callable[[bool], tuple[Callable[[], object], Callable[[], object]]]:
        def sessions(second_first: bool) -> tuple[Callable[[], object], Callable[[], object]]:
            order = (after, before) if second_first else (before, after)
            made = [Session(graph.model, provider, graph.folder, threads=threads) for graph in order]
            old, new = reversed(made) if second_first else made
            return lambda: old.run(batch), lambda: new.run(batch)

        return sessions

    def timed(batch: Batch) -> Latency:
        return interleaved(pair(batch), batch.rows, partial(progress, f"latency, {batch.rows} rows"))

    if batches.fixed or batch.rows == 1:
        return [timed(batch)], []
    try:
        one = timed(Batch({name: array[:1] for name, array in batch.feeds.items()}, batch.first, 1))
    except DataError as error:  # what is declared free may be fixed inside
        return [timed(batch)], [f"There is no latency of one row, which the models do not take: {error}"]
    return [one, timed(batch)], []


def _opened(model: Model) -> tuple[Graph, Graph, FileInfo]:
    """The model as given, the model with its packed weights unpacked, and what it weighs."""
    proto, folder, info = as_given(model)
    whole = dense(proto, folder)
    given = Graph(in_order(proto), folder)
    return given, given if whole is proto else Graph(in_order(whole), folder), info


def _files(model: Model, graph: Graph, path: Path) -> list[Path]:
    """The files of a model; one in memory is written to `path` first."""
    if isinstance(model, str | PathLike):
        return [Path(model), *data_files(graph.model, Path(model).parent.absolute())]
    path.parent.mkdir()
    save_model(model, path)
    return [path, *sorted(part for part in path.parent.iterdir() if part != path)]

"""The Python interface of `onnxdpp prune`."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from onnxdpp.algebra.refit import is_scarce
from onnxdpp.errors import ModelError, UsageError
from onnxdpp.evaluating import Trial, check_labels
from onnxdpp.evaluation import compare, macs_per_row
from onnxdpp.forms import grown, proven_form, weighed
from onnxdpp.gates import Limits, verdicts
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.calibration import choose_provider
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.external import has_external_data
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import model_info
from onnxdpp.graph.padding import check_mask
from onnxdpp.graph.rewriting import in_order
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.storage import is_packed
from onnxdpp.graph.walking import some_of
from onnxdpp.job import Job
from onnxdpp.labelled import open_labelled
from onnxdpp.opening import (
    Data,
    Given,
    Model,
    Outcome,
    Progress,
    as_given,
    counting,
    dense,
    named,
    read_report,
    size_of,
    versions,
)
from onnxdpp.options import MEMORY, Options, listed, parse_layer, parse_pattern, parse_report
from onnxdpp.planning import plan
from onnxdpp.report import LayerResult, Report
from onnxdpp.stages import Pruned, carry_out

if TYPE_CHECKING:
    from onnxdpp.details import Details


@dataclass
class PruneResult(Outcome):
    """The outcome of `prune`.

    Attributes
    ----------
    model : ModelProto
        The pruned model, verified; with packed weights where the report's ``storage`` says so.
    report : dict
        As the JSON Schema ``report`` says.
    folder : Path or None
        Of the input, where it is a path: what is left of its external data is named from there. Of a model with
        external data, `model` says where the weights lie, and pruned ones lie in temporary files that go when this
        object goes: `save` it to have them.
    """

    _details: "Details | None" = field(default=None, repr=False)
    _name: str = field(default="MODEL.onnx", repr=False)  # of the input

    def html(self) -> str:
        """The report as one page of HTML that needs nothing else; with pictures after ``prune(..., details=True)``.

        Raises
        ------
        MachineError
            If Jinja, the extra ``html``, is not installed.
        """
        from onnxdpp.html import page

        return page(self.report, self._details, self._name)


def prune(
    model: Model,
    calib: Data,
    *,
    keep: float | str | None = None,
    pattern: str | None = None,
    unit: str = "neuron",
    method: str | None = None,
    kernel: str = "rbf",
    beta: float | None = None,
    epsilon: float = 0.01,
    refit: str = "affine",
    layers: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
    round_to: int = 1,
    seed: int = 0,
    provider: str = "auto",
    batch_size: int | None = None,
    max_rows: int | None = None,
    mask: str | None = None,
    memory: int = MEMORY,
    swaps: int = 0,
    sensitivity: bool | None = None,
    sweeps: int = 0,
    polish: int = 0,
    target_parameters: float | None = None,
    target_bytes: int | None = None,
    target_macs: float | None = None,
    target_discrepancy: float | None = None,
    allocation: str = "auto",
    apply: Given | None = None,
    storage: str | None = None,
    values: str = "same",
    data: Data | None = None,
    labels: str | None = None,
    max_discrepancy: float | None = None,
    max_accuracy_drop: float | None = None,
    min_agreement: float | None = None,
    max_size_ratio: float | None = None,
    min_speedup: float | None = None,
    baseline: Given | None = None,
    details: bool = False,
    progress: Progress = lambda text, fraction: None,
) -> PruneResult:
    """Prune an ONNX model: choose neurons or edges, drop the others, refit what stays.

    Parameters
    ----------
    model : path or ModelProto
        Not changed.
    calib : path, mapping of arrays, or iterable of mappings
        Calibration data, first axis = rows: ``.npz``, ``.npy``, a folder of them, ``"random:256"``, arrays by input
        name, or batches of them (an iterable that starts anew each time; a one-shot iterator is read into a list).
    keep : float or "auto"
        Fraction that stays, 0 < keep <= 1: of the neurons of every layer, or of the edges into every output.
        ``"auto"``: of each layer's neurons as many as a draw from its DPP has on average (see `beta`).
    pattern : str
        Instead of `keep`, for edges: ``"2:4"`` keeps 2 of every 4 consecutive inputs of each output, as sparse tensor
        cores want it; ``"N:M"`` any other.
    unit : {"neuron", "edge"}
        Neurons: shapes shrink. Edges: weights become zero.
    method : {"auto", "dpp", "dpp-sample", "obs", "omp", "wanda", "fluctuation", "importance", "random"}
        The best of several on rows held out (the default, unless a kernel, beta, epsilon, swaps or pattern is given,
        or no refit: then the DPP); the DPP's mode; an exact draw from it; least error of the refit, backward or
        forward; weight times root mean square; squared weight times variance; the largest weights; uniformly.
    kernel : {"rbf", "linear", "consumer"}
        Of the DPP: resemblance of activations; what neurons contribute to the consumers' outputs, as volumes or, with
        the rbf formula, as distances.
    beta : float, optional
        Of the rbf kernel, on mean squared distances (10: the papers'). Default: 1 / median of the layer's.
    epsilon : float
        Added to the kernel's diagonal.
    refit : {"affine", "linear", "none"}
        Least squares with an intercept in the bias; without (the papers'); none.
    layers : str or iterable of str
        ``PATTERN`` or ``PATTERN=KEEP``: prune only layers that match one; the last match decides.
    skip : str or iterable of str
        Patterns of layers to leave alone. Patterns are case-sensitive globs on layer names.
    round_to : int
        Kept counts become multiples of it.
    seed : int
    provider : {"auto", "cpu", "cuda"}
    batch_size, max_rows : int, optional
        Rows per run; rows to use, evenly spaced.
    mask : str, optional
        An input whose zeros mark padding: these positions of values with its axes in front, and of outputs declared
        with its very axes, are not observed, nor looked at where outputs are compared.
    memory : int
        Bytes that one matrix of second moments may take. Where the inputs of a consumer would need more (patches of a
        wide convolution, a flattened image), its channels are observed instead, and dropped ones are written as
        mixtures of kept ones.
    swaps : int
        How many neurons of each layer may be swapped for others after the choice, while the error of the refit falls.
    sensitivity : bool, optional
        Whether the choice of neurons weighs errors by how strongly the model's outputs feel them, measured by forward
        runs on a few rows (see `onnxdpp.sensitivity`). Default: with ``auto``.
    sweeps : int
        How often, at most, each layer of neurons is chosen again by swaps, with the others as they are, and kept so if
        the outputs come nearer to the original on rows held out. Each costs a whole run for every layer.
    polish : int
        Rounds, at most, of Gauss-Newton steps that bring the outputs nearer to the original's (see
        `onnxdpp.polishing`): the weights of one projection after the other, those into the neurons that stay too.
    target_parameters, target_macs : float, optional
        Instead of `keep`: the fraction of the model's parameters, or multiply-accumulates, that stays at most.
    target_bytes : int, optional
        Instead of `keep`: how large the file is at most.
    target_discrepancy : float, optional
        Instead of `keep`: the smallest model whose worst output is no further than this from the original's (relative
        L2) on every fifth row, which pruning does not see.
    allocation : {"auto", "measured", "uniform"}
        How a target is spread over the layers: by what each does to the outputs, evenly, or by whichever of both brings
        the outputs nearer on rows held out.
    apply : report or path of one, optional
        Instead of `keep`: the neurons that an earlier run kept, on a model that was trained or exported again, with a
        refit of its own. Of these layers `layers` and `skip` may leave some alone.
    storage : {"auto", "packed", "sparse", "dense"}, optional
        How weights with zeros are written: each in the smallest form, where that saves enough; as bits and values; as
        sparse initializers; with their zeros. Default: ``"auto"`` for edges, and where `model` is packed or `values`
        are float16; else ``"dense"``.
    values : {"same", "float16"}
        Of packed weights: as they are, or rounded.
    data : as `calib`, optional
        Rows that are not calibrated on, where the pruned model is tried: the report's ``evaluation``.
    labels : str, optional
        The array of `data` that holds the class of each row.
    max_discrepancy, max_accuracy_drop, min_agreement, max_size_ratio, min_speedup : float, optional
        Gates, see `onnxdpp.gates.Limits`; the report's ``gates`` say which are passed. Those on answers look at `data`;
        without, at every fifth calibration row, which pruning does not see then.
    baseline : report or path of one, optional
        Of an earlier run: one more gate for each figure there.
    details : bool
        Whether to collect what the pictures of `PruneResult.html` show: an elimination for each layer, and both models
        run once more. The model and the report are the same.
    progress : callable (text, fraction), optional

    Returns
    -------
    PruneResult
        The verified model and the report.

    Raises
    ------
    UsageError, ModelError, DataError, NothingToPrune, MachineError
        All of them OnnxdppError; see `onnxdpp.errors`.
    """
    started = time.perf_counter()
    asked = kernel != "rbf" or beta is not None or epsilon != Options.epsilon or swaps or pattern is not None
    if apply is not None and (asked or method is not None or sensitivity is not None):
        raise UsageError(
            "The report says which neurons stay: apply goes without --method, --swaps, --sensitivity and kernels."
        )
    if method is None:
        method = "dpp" if asked or refit == "none" else "auto"
    if sensitivity is None:
        sensitivity = method == "auto" and unit == "neuron"
    options = Options(
        keep, unit, method, kernel, beta, epsilon, refit,
        tuple(parse_layer(text) for text in listed(layers)), tuple(listed(skip)), round_to, seed,
        provider, batch_size, max_rows,
        None if pattern is None else parse_pattern(pattern), mask, memory, swaps, sensitivity, sweeps, polish,
        target_parameters, target_bytes, target_macs, target_discrepancy, allocation,
        None if apply is None else parse_report(read_report(apply)),
        "auto" if storage is None else storage, values,
    )  # fmt: skip
    limits = Limits(
        max_discrepancy, max_accuracy_drop, min_agreement, max_size_ratio, min_speedup,
        None if baseline is None else read_report(baseline),
    )  # fmt: skip
    if data is None and (labels is not None or max_accuracy_drop is not None):
        raise UsageError("Labels, and a gate on accuracy, need data that have them: name these by --data and --labels.")
    check_labels(limits, labels)
    given, folder, info = as_given(model)
    if storage is None and unit == "neuron" and values == "same" and not is_packed(given):
        options = replace(options, storage="dense")
    proto = dense(given, folder)
    graph = Graph(in_order(proto), folder)
    scratch = Scratch(active=has_external_data(proto))
    todo = plan(graph, options)
    where, notices = choose_provider(provider)
    inputs = input_specs(graph.model)
    size, seed = options.batch_size, options.seed
    batches = open_batches(calib, inputs, batch_size=size, max_rows=options.max_rows, seed=seed)
    check_mask(mask, inputs)
    fitted, judged, trial = batches, None, None
    if options.target_discrepancy is not None:
        fitted, judged = batches.parted("a keep")
    elif data is None and limits.on_answers:
        fitted, judged = batches.parted("--data")
    if data is not None:
        trial = Trial(open_labelled(data, inputs, labels, batch_size=size, seed=seed), labels, mask=mask)
    elif judged is not None:
        trial = Trial(judged, mask=mask, held_out=True)
    job = Job.of(graph, options, fitted, where, progress, judged)
    seen = _details(options) if details else None
    made = carry_out(job, todo, scratch, None if seen is None else seen.watch)
    notices += made.notices
    check_model(made.model, "the pruned model")
    first = next(iter(batches))
    form, told_of_form = proven_form(made.model, folder, options.storage, options.values, where, first)
    after = Graph(form.dense, folder)
    verifying = counting(progress, "verify", batches.rows)
    discrepancy = compare(graph, form.dense, batches, where, verifying, mask=mask, finite=True)
    tried: dict[str, Any] | None = None
    told_of_it: list[str] = []
    if trial is None and min_speedup is not None:
        trial = Trial(batches, known=discrepancy)
    if trial is not None:
        written = Graph(in_order(form.model), folder)
        tried, told_of_it = trial.run(graph, written, where, min_speedup is not None, progress)
    if seen is not None:
        seen.compare(graph, form.dense, batches, where, mask)
    if options.target_discrepancy is not None and data is not None and judged is not None:
        reached = compare(graph, form.dense, judged, where, mask=mask).worst
        notices.append(
            f"Discrepancy on the {judged.rows:,} calibration rows that the target was judged on: {reached:.4g}."
        )
    written_info = model_info(form.model, folder)
    if unit == "edge" and options.target_bytes is not None and written_info.bytes > options.target_bytes:
        raise ModelError(
            f"The file came out at {written_info.bytes:,} bytes, above the {options.target_bytes:,} asked for. Ask for "
            "less."
        )
    files, told_of_files = weighed(form, folder, where)
    notices += [
        *batches.notices,
        *(notice for notice in fitted.notices if notice not in batches.notices),
        *discrepancy.notices,
        *_few_rows(made.layers, made.left),
        *_no_contest(made, options),
        *job.sensitivity.notices,
        *told_of_form,
        *grown(given, info.bytes, written_info.bytes, neurons=unit == "neuron"),
        *told_of_files,
    ]
    if batches.random:
        notices.append("The calibration data are random: sizes and latency are real, losses and answers are not.")
    notices += [notice for notice in told_of_it if notice not in notices]
    report = Report(
        before=size_of(graph, info, macs_per_row(graph, first, where)),
        after=size_of(after, written_info, macs_per_row(after, first, where)),
        layers=made.layers,
        rivals=[rival.as_dict() for rival in made.rivals] or None,
        refusals=[(refusal.name, refusal.reason) for refusal in todo.refusals],
        discrepancy=discrepancy.outputs,
        evaluation=tried,
        storage=None if form.asked == "dense" else form.report(files),
        provider=where,
        seed=seed,
        rows=batches.rows,
        random_data=batches.random,
        notices=notices,
        options={
            **_options_as_given(options, calib),
            "data": None if data is None else named(data),
            "labels": labels,
            **limits.as_given(None if baseline is None else named(baseline)),
        },
        versions=versions(),
        seconds=time.perf_counter() - started,
    ).as_dict()
    report["gates"] = verdicts(report, limits)
    name = str(model) if isinstance(model, str | PathLike) else PruneResult._name
    return PruneResult(form.model, report, folder, (scratch, *form.scratch), seen, name)


def _details(options: Options) -> "Details":
    from onnxdpp.details import Details  # what clusters neurons takes its time to load

    return Details(options.rule)


def _no_contest(made: Pruned, options: Options) -> list[str]:
    """A notice where ``auto`` had nothing to judge candidates on."""
    if made.rivals or options.method != "auto" or options.refit == "none" or options.apply is not None:
        return []
    names = [part.name for part in made.layers if part.kept < part.width and part.contest is None]
    return (
        [f"No rows could be held out for {some_of(names)}: the DPP's mode chose, without a contest."] if names else []
    )


def _few_rows(results: Sequence[LayerResult], left: Iterable[int]) -> list[str]:
    """A notice where some layer was refitted on too few rows for the inputs that are left."""
    if all(result.kept == result.width for result in results):
        return []
    short = [
        (result, inputs)
        for result, inputs in zip(results, left, strict=True)
        if result.refit != "none" and is_scarce(result.observations, inputs)
    ]
    if not short:
        return []
    result, inputs = short[0]
    return [
        f"{result.observations} observations are few for the refit of {len(short)} layers (of {result.name!r}, "
        f"{inputs} inputs stay): on other data the model may be far worse than these figures. Give at least twice as "
        "many rows as stay."
    ]


def _options_as_given(options: Options, calib: Data) -> dict[str, Any]:
    given = {
        "calib": named(calib),
        **{name: getattr(options, name) for name in Options.__dataclass_fields__},
    }
    given["beta"] = "auto" if options.beta is None else options.beta
    given["layers"] = [pattern if keep is None else f"{pattern}={keep}" for pattern, keep in options.layers]
    given["skip"] = list(options.skip)
    given["apply"] = None if options.apply is None else [name for name, _, _ in options.apply]
    given["pattern"] = None if options.pattern is None else ":".join(map(str, options.pattern))
    return given

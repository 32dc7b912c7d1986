"""The Python interface: `prune` and `inspect`."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import ArrayLike
from onnx import ModelProto

from onnxdpp.algebra.refit import is_scarce
from onnxdpp.budget import allocate
from onnxdpp.errors import ModelError, UsageError
from onnxdpp.evaluation import compare, macs_per_row, parameters
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.calibration import RUNTIME_VERSION, choose_provider
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.external import data_files, has_external_data
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import find_layers
from onnxdpp.graph.model import FileInfo, file_info, load_model, model_info, save_model
from onnxdpp.graph.projections import find_projections, weighted_nodes
from onnxdpp.graph.rewriting import in_order
from onnxdpp.graph.scratch import Scratch
from onnxdpp.options import MEMORY, Options, parse_layer, parse_pattern, parse_report
from onnxdpp.planning import plan
from onnxdpp.pruning import Progress, execute
from onnxdpp.report import FoundLayer, Inspection, LayerResult, ModelSize, Report
from onnxdpp.sensitivity import Sensitivity
from onnxdpp.sizing import expected_sizes
from onnxdpp.sweeping import swept
from onnxdpp.verifying import Verdict
from onnxdpp.verifying import verify as check_layers

if TYPE_CHECKING:
    from onnxdpp.details import Details

Model: TypeAlias = str | PathLike[str] | ModelProto
Calibration: TypeAlias = str | PathLike[str] | Mapping[str, ArrayLike] | Iterable[Mapping[str, ArrayLike]]


@dataclass
class PruneResult:
    """The outcome of `prune`.

    Attributes
    ----------
    model : ModelProto
        The pruned model, verified.
    report : dict
        As the JSON Schema ``report`` says.
    folder : Path or None
        Of the input, where it is a path: what is left of its external data is named from there. Of a model with
        external data, `model` says where the weights lie, and pruned ones lie in temporary files that go when this
        object goes: `save` it to have them.
    """

    model: ModelProto
    report: dict[str, Any] = field(repr=False)
    folder: Path | None = field(default=None, repr=False)
    _scratch: Scratch | None = field(default=None, repr=False)  # what `model` needs lies in it
    _details: "Details | None" = field(default=None, repr=False)
    _name: str = field(default="MODEL.onnx", repr=False)  # of the input

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write the model, atomically; its external data, if it has any, into a second file beside it.

        Raises
        ------
        UsageError
            If `path` exists and `force` is not given.
        MachineError
            If the disk does not take it; a file that was there before is unharmed.
        """
        save_model(self.model, path, folder=self.folder, force=force)

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
    calib: Calibration,
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
    target_parameters: float | None = None,
    target_bytes: int | None = None,
    target_macs: float | None = None,
    target_discrepancy: float | None = None,
    allocation: str = "measured",
    apply: Mapping[str, Any] | str | PathLike[str] | None = None,
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
        An input whose zeros mark padding: these positions of values with its axes in front are not observed.
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
    target_parameters, target_macs : float, optional
        Instead of `keep`: the fraction of the model's parameters, or multiply-accumulates, that stays at most.
    target_bytes : int, optional
        Instead of `keep`: how large the file is at most.
    target_discrepancy : float, optional
        Instead of `keep`: the smallest model whose worst output is no further than this from the original's (relative
        L2) on every fifth row, which is not fitted.
    allocation : {"measured", "uniform"}
        How a target is spread over the layers: by what each does to the outputs, or evenly.
    apply : report or path of one, optional
        Instead of `keep`: the neurons that an earlier run kept, on a model that was trained or exported again, with a
        refit of its own.
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
    if method is None:
        asked = kernel != "rbf" or beta is not None or epsilon != Options.epsilon or swaps or pattern is not None
        method = "dpp" if asked or refit == "none" else "auto"
    if sensitivity is None:
        sensitivity = method == "auto" and unit == "neuron"
    options = Options(
        keep, unit, method, kernel, beta, epsilon, refit,
        tuple(parse_layer(text) for text in _listed(layers)), tuple(_listed(skip)), round_to, seed,
        provider, batch_size, max_rows,
        None if pattern is None else parse_pattern(pattern), mask, memory, swaps, sensitivity, sweeps,
        target_parameters, target_bytes, target_macs, target_discrepancy, allocation,
        None if apply is None else parse_report(_report(apply)),
    )  # fmt: skip
    proto, folder, info = _opened(model)
    graph = Graph(in_order(proto), folder)
    scratch = Scratch(active=has_external_data(proto))
    todo = plan(graph, options)
    where, notices = choose_provider(provider)
    inputs = input_specs(graph.model)
    batches = open_batches(calib, inputs, batch_size=batch_size, max_rows=max_rows, seed=seed)
    if mask is not None and mask not in (known := [spec.name for spec in inputs]):
        raise UsageError(f"The mask {mask!r} is no input of the model. Its inputs: {', '.join(map(repr, known))}.")
    felt = Sensitivity(graph, batches, where, mask)
    steps = (options, batches, where, progress)
    if options.has_goal:
        todo = allocate(graph, todo, *steps, felt)
    hold_out = options.target_discrepancy is not None
    if options.sweeps:
        _, results, _ = execute(graph, todo, *steps, Scratch(active=False), felt, hold_out=True)
        todo, told = swept(graph, todo, results, *steps, felt)
        notices.append(told)
    seen = _details(options) if details else None
    watch = None if seen is None else seen.watch
    pruned, results, left = execute(graph, todo, *steps, scratch, felt, hold_out=hold_out, watch=watch)
    check_model(pruned, "the pruned model")
    after = Graph(pruned, folder)
    discrepancy = compare(graph, pruned, batches, where, _counting(progress, "verify", batches.rows))
    if seen is not None:
        seen.compare(graph, pruned, batches, where)
    first = next(iter(batches))
    notices += [*batches.notices, *discrepancy.notices, *_few_rows(results, left)]
    if batches.random:
        notices.append("The calibration data are random: sizes and latency are real, losses and answers are not.")
    report = Report(
        before=_size(graph, info, macs_per_row(graph, first, where)),
        after=_size(after, model_info(pruned, folder), macs_per_row(after, first, where)),
        layers=results,
        refusals=[(refusal.name, refusal.reason) for refusal in todo.refusals],
        discrepancy=discrepancy.outputs,
        provider=where,
        seed=seed,
        rows=batches.rows,
        random_data=batches.random,
        notices=notices,
        options=_options_as_given(options, calib),
        versions=_versions(),
        seconds=time.perf_counter() - started,
    )
    name = str(model) if isinstance(model, str | PathLike) else PruneResult._name
    return PruneResult(pruned, report.as_dict(), folder, scratch, seen, name)


def inspect(
    model: Model,
    *,
    verify: bool = False,
    calib: Calibration | None = None,
    kernel: str = "rbf",
    beta: float | None = None,
    epsilon: float = 0.01,
    seed: int = 0,
    provider: str = "auto",
    max_rows: int | None = None,
    progress: Progress = lambda text, fraction: None,
) -> dict[str, Any]:
    """What of a model can be pruned, and what cannot, and why.

    Parameters
    ----------
    model : path or ModelProto
    verify : bool
        Put each layer to the two tests of `onnxdpp.verifying`, by running the model.
    calib : as for `prune`, optional
        Where it is given: find the size of each layer's own DPP on it, as `onnxdpp.sizing` does. Its first batch is
        what `verify` runs (default: ``"random:8"``).
    kernel, beta, epsilon : as for `prune`
        Of that DPP.
    seed : int
    provider : {"auto", "cpu", "cuda"}
    max_rows : int, optional
        Rows to use, evenly spaced.
    progress : callable (text, fraction), optional

    Returns
    -------
    dict
        As the JSON Schema ``inspection`` says.

    Raises
    ------
    UsageError, ModelError, DataError, MachineError
        All of them OnnxdppError; see `onnxdpp.errors`.
    """
    options = Options(
        "auto", method="dpp", kernel=kernel, beta=beta, epsilon=epsilon, seed=seed, provider=provider, max_rows=max_rows
    )
    proto, folder, info = _opened(model)
    graph = Graph(in_order(proto), folder)
    layers, no_neurons = find_layers(graph)
    projections, no_edges = find_projections(graph)
    operators = {name: graph.nodes[index].op_type for index, name in weighted_nodes(graph).items()}
    verdicts: dict[str, Verdict] = {}
    sizes: dict[str, float] = {}
    notices: list[str] = []
    if layers and (verify or calib is not None):
        where, told = choose_provider(provider)
        source = "random:8" if calib is None else calib
        batches = open_batches(source, input_specs(graph.model), max_rows=max_rows, seed=seed)
        if verify:
            tested = check_layers(graph, layers, next(iter(batches)), where, seed, progress)
            verdicts = {part.name: part for part in tested}
        if calib is not None:
            sizes, failed = expected_sizes(graph, layers, options, batches, where, progress)
            notices = [*told, *batches.notices, *failed]
            if batches.random:
                notices.append("The calibration data are random: on others the DPP's own sizes differ.")
    found = [
        FoundLayer(
            layer.name, operators[layer.name], "neuron", layer.n, sum(part.m for part, _ in layer.consumers),
            list(layer.members), [part.name for part, _ in layer.consumers],
            asdict(verdicts[layer.name]) if layer.name in verdicts else None, sizes.get(layer.name),
        )
        for layer in layers
    ]  # fmt: skip
    found += [FoundLayer(part.name, operators[part.name], "edge", part.n, part.m) for part in projections]
    refusals = [(refusal.name, "neuron", refusal.reason) for refusal in no_neurons]
    refusals += [(refusal.name, "edge", refusal.reason) for refusal in no_edges]
    return Inspection(
        _size(graph, info, None), graph.opset, proto.producer_name, found, refusals, notices, _versions()
    ).as_dict()


def _details(options: Options) -> "Details":
    from onnxdpp.details import Details  # what clusters neurons takes its time to load

    return Details(options.rule)


def _listed(patterns: str | Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _report(report: Mapping[str, Any] | str | PathLike[str]) -> Mapping[str, Any]:
    if isinstance(report, Mapping):
        return report
    try:
        read = json.loads(Path(report).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The report {str(report)!r} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(read, dict):
        raise UsageError(f"The report {str(report)!r} is none of onnxdpp.")
    return read


def _opened(model: Model) -> tuple[ModelProto, Path | None, FileInfo]:
    """The model, its folder where it is a path, and what it weighs."""
    if isinstance(model, ModelProto):
        check_model(model, "the model")
        if has_external_data(model):
            raise ModelError("The model has external data, and a ModelProto does not say where. Give the model's path.")
        return model, None, model_info(model)
    if not isinstance(model, str | PathLike):
        raise UsageError(f"The model is a {type(model).__name__}; it can be a path or an onnx.ModelProto.")
    proto, folder = load_model(model), Path(model).parent.absolute()
    return proto, folder, file_info(model, data_files(proto, folder))


def _size(graph: Graph, info: FileInfo, macs: int | None) -> ModelSize:
    total, nonzero = parameters(graph.model, graph.folder)
    return ModelSize(info.sha256, info.bytes, total, nonzero, macs)


def _counting(progress: Progress, text: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        progress(text, done / total)

    return count


def _few_rows(results: Iterable[LayerResult], left: Iterable[int]) -> list[str]:
    """A notice where some layer was refitted on too few rows for the inputs that are left."""
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


def _options_as_given(options: Options, calib: Calibration) -> dict[str, Any]:
    given = {
        "calib": str(calib) if isinstance(calib, str | PathLike) else "arrays",
        **{name: getattr(options, name) for name in Options.__dataclass_fields__},
    }
    given["beta"] = "auto" if options.beta is None else options.beta
    given["layers"] = [pattern if keep is None else f"{pattern}={keep}" for pattern, keep in options.layers]
    given["skip"] = list(options.skip)
    given["apply"] = None if options.apply is None else [name for name, _, _ in options.apply]
    given["pattern"] = None if options.pattern is None else ":".join(map(str, options.pattern))
    return given


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "onnxruntime": RUNTIME_VERSION,
        **{name: version(name) for name in ("onnxdpp", "onnx", "numpy", "scipy")},
    }

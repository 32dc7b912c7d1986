"""Networks of others, half their channels and neurons: accuracy beside onnxsim's, parameters, MACs and latency.

    python samples/real.py --models DIR --data DIR [--keep F] [--rows N] [--seeds N] [--only GLOB]
        [--peer RUN_ONNXSIM.py --peer-python PYTHON] [--peer-limit SECONDS] [--peer-folder DIR] [--out TABLE.md]

DIR of `--models` holds the .onnx files and ``manifest.csv``, which says what answers MNIST and how its images are
made ready; DIR of `--data` holds the four IDX files and ``datasets.py``. Every model with a known accuracy is pruned
by each method and put to all 10,000 test images. Calibration rows are training images, evenly spaced, without labels.
Models made for one row at a time get a free first axis, which is checked to change no answer: it only saves time.

onnxsim is run through `--peer`, in the environment of `--peer-python`, on the same model and the same rows: each of
its ways to remove channels, with each ranking, the best of them by *test* accuracy. Its keep is searched such that as
many parameters stay as with onnxdpp: the next count above, and the next below.

The table goes to stdout and, rewritten after each model, to `--out` (default real.md beside this script).
"""

import argparse
import csv
import fnmatch
import importlib.util
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

import numpy as np
import onnx
import onnxruntime as ort
from machine import processor
from onnx import ModelProto, numpy_helper
from onnxsim_peer import COUNTING_ROWS, CRITERIA, NORMS, Peer, around

import onnxdpp
from onnxdpp.evaluation import macs_per_row, parameters
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.index import Graph

READY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "/255": lambda pixels: pixels / np.float32(255),
    "(x/255-.1307)/.3081": lambda pixels: (pixels / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081),
    "raw0-255": lambda pixels: pixels.astype(np.float32),
}
BATCH = 500
SMALL = 2**26  # bytes of moments: layers that need more are also pruned by channels
MODES = ("structured", "structured+finetune", "structured+seqft", "structured+blockft")
METHODS: dict[str, tuple[dict[str, Any], bool]] = {  # options; whether the seed matters
    "auto": ({"method": "auto"}, False),
    "auto, polished": ({"method": "auto", "polish": 3}, False),
    "auto, allocated": ({"method": "auto", "allocated": True}, False),
    "auto, allocated, polished": ({"method": "auto", "allocated": True, "polish": 3}, False),
    "dpp": ({"method": "dpp"}, False),
    "dpp, swaps": ({"method": "dpp", "swaps": 100}, False),
    "importance": ({"method": "importance"}, False),
    "random": ({"method": "random"}, True),
    "dpp, no refit": ({"method": "dpp", "refit": "none"}, False),
}
SHOWN = ("auto", "auto, allocated, polished", "dpp")  # beside onnxsim
BRIEF = (*SHOWN, "auto, polished", "random")
WARM, RUNS = 50, 400
LATENCY_BATCHES = (1, 64)


@dataclass(frozen=True)
class Images:
    """MNIST: pixels (rows, 784) and test labels."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, folder: Path) -> "Images":
        """Read them as the folder's datasets.py does."""
        spec = importlib.util.spec_from_file_location("datasets", folder / "datasets.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        train, _, test, labels = module.mnist()
        return cls(train, test, labels)


@dataclass
class Case:
    """One model of the manifest and what it is fed."""

    name: str
    known: float
    dense: ModelProto
    ready: Callable[[np.ndarray], np.ndarray]
    images: Images
    rows: int

    @classmethod
    def of(cls, row: dict[str, str], folder: Path, images: Images, rows: int) -> "Case":
        """Read a model and free its first axis."""
        shipped = onnx.load(folder / row["file"])
        case = cls(
            row["file"].split("__", 1)[-1].removesuffix(".onnx").replace("__", "/"),
            float(row["accuracy"]), with_free_rows(shipped), READY[row["accuracy_preprocessing"]], images, rows,
        )  # fmt: skip
        few = case.shaped(images.test[:64])
        one_by_one = np.concatenate([answers(shipped, case.input, few[row : row + 1]) for row in range(len(few))])
        if not np.array_equal(one_by_one, answers(case.dense, case.input, few)):
            sys.exit(f"{case.name}: a free first axis changes the answers")
        return case

    @cached_property
    def input(self) -> str:
        """Name of the input."""
        return inputs(self.dense)[0].name

    def shaped(self, pixels: np.ndarray) -> np.ndarray:
        """Rows of pixels as the model wants them."""
        shape = inputs(self.dense)[0].type.tensor_type.shape.dim[1:]
        return self.ready(pixels).reshape(-1, *(axis.dim_value for axis in shape))

    @cached_property
    def calib(self) -> np.ndarray:
        """Training images, evenly spaced."""
        return self.shaped(self.images.train[np.linspace(0, len(self.images.train) - 1, self.rows).astype(int)])

    @cached_property
    def test(self) -> np.ndarray:
        """All test images."""
        return self.shaped(self.images.test)

    def accuracy(self, model: ModelProto) -> float:
        """Fraction of test images that a model names rightly."""
        return float(self.right(model).mean())

    def right(self, model: ModelProto) -> np.ndarray:
        """Which test images it names rightly."""
        return answers(model, self.input, self.test).argmax(-1) == self.images.labels

    def size(self, model: ModelProto) -> tuple[int, int]:
        """Parameters and MACs per row."""
        graph = Graph(model, None)
        batch = next(iter(open_batches({self.input: self.calib[:1]}, input_specs(model))))
        return parameters(model)[0], macs_per_row(graph, batch, "cpu") or 0


@dataclass
class Pruned:
    """A pruned model and what became of it."""

    model: ModelProto
    accuracy: float
    parameters: int
    macs: int
    how: str = ""
    report: dict[str, Any] = field(default_factory=dict)


def inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are no constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def with_free_rows(model: ModelProto) -> ModelProto:
    """A copy that takes any number of rows; reshapes that begin with one row follow."""
    free = ModelProto()
    free.CopyFrom(model)
    for value in (*inputs(free), *free.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        axis.dim_param = "N"
    del free.graph.value_info[:]
    constants = {tensor.name: tensor for tensor in free.graph.initializer}
    constants.update(
        (node.output[0], entry.t)
        for node in free.graph.node
        if node.op_type == "Constant"
        for entry in node.attribute
        if entry.name == "value"
    )
    for node in free.graph.node:
        if node.op_type != "Reshape" or node.input[0] in constants or node.input[1] not in constants:
            continue
        tensor = constants[node.input[1]]
        shape = numpy_helper.to_array(tensor).copy()
        if len(shape) and shape[0] == 1:
            shape[0] = 0 if -1 in shape[1:] else -1
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    return free


def session(model: ModelProto) -> ort.InferenceSession:
    """On one thread of the CPU that sleeps when it waits."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers(model: ModelProto, name: str, rows: np.ndarray) -> np.ndarray:
    """First output for all rows."""
    running = session(model)
    return np.concatenate(
        [running.run(None, {name: rows[start : start + BATCH]})[0] for start in range(0, len(rows), BATCH)]
    )


def ours(case: Case, *, keep: float, allocated: bool = False, count: int | None = None, **options: Any) -> Pruned:
    """Prune a case with onnxdpp and evaluate it.

    `allocated`: `count` parameters (default: those that the keep leaves) are shared out over the layers.
    """
    goal = {"keep": keep}
    if allocated:
        goal = {"target_parameters": (count or our_count(case, keep)) / case.size(case.dense)[0]}
    began = time.perf_counter()
    result = onnxdpp.prune(case.dense, {case.input: case.calib}, provider="cpu", **goal, **options)
    seconds = time.perf_counter() - began
    after = result.report["model"]["after"]
    pruned = Pruned(result.model, case.accuracy(result.model), after["parameters"], after["macs"], report=result.report)
    options = {**goal, **options}
    said = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{value}" for name, value in options.items())
    note(f"{case.name}: {said}: {percent(pruned.accuracy)} in {seconds:.1f} s, {pruned.parameters:,} parameters")
    return pruned


def our_count(case: Case, keep: float) -> int:
    """How many parameters stay at a keep, whatever is chosen."""
    few = {case.input: case.calib[:COUNTING_ROWS]}
    result = onnxdpp.prune(case.dense, few, keep=keep, method="random", provider="cpu", memory=2**20)
    return int(result.report["model"]["after"]["parameters"])


def all_modes(peer: Peer, case: Case, criterion: str, keep: float) -> dict[str, Pruned | str]:
    """Every mode of onnxsim: the better of both norms by test accuracy, or why there is none.

    The Adam mode, which takes minutes, gets the norm that the others did best with.
    """
    expected = peer.count(criterion, keep)
    found: dict[str, Pruned | str] = {}
    merit = dict.fromkeys(NORMS, 0.0)
    for mode in MODES:
        if mode in peer.hopeless:
            found[mode] = f"over {peer.limit:g} s"
            continue
        for norm in [max(NORMS, key=merit.__getitem__)] if mode == MODES[-1] else NORMS:
            began = time.perf_counter()
            made = peer.prune_structured(keep, mode, criterion, norm)
            how = f"{mode.removeprefix('structured').lstrip('+') or 'no refit'}, {criterion}-{norm}"
            where = f"{case.name}: onnxsim keep {keep:g}, {how}"
            if not isinstance(made, str) and parameters(made.model)[0] > 1.01 * expected:
                made = "prunes less"
            if isinstance(made, str):
                found.setdefault(mode, made)
                note(f"{where}: {made}")
                if made.startswith("over"):
                    peer.hopeless.add(mode)
                    break
                continue
            pruned = Pruned(made.model, case.accuracy(made.model), *case.size(made.model), how=how)
            note(f"{where}: {percent(pruned.accuracy)} in {time.perf_counter() - began:.0f} s")
            merit[norm] = max(merit[norm], pruned.accuracy)
            best = found.get(mode)
            if not isinstance(best, Pruned) or best.accuracy < pruned.accuracy:
                found[mode] = pruned
    return found


@dataclass
class Outcome:
    """All that was found about one case."""

    case: Case
    dense: float
    size: tuple[int, int]
    methods: dict[str, list[Pruned]] = field(default_factory=dict)
    by_channels: dict[str, list[Pruned]] = field(default_factory=dict)
    latency: dict[int, tuple[float, float]] = field(default_factory=dict)
    peer: dict[tuple[str, float], dict[str, Pruned | str]] = field(default_factory=dict)  # criterion, keep
    below: list[tuple[str, float]] = field(default_factory=list)  # of these, those next below our count
    above: list[tuple[str, float]] = field(default_factory=list)
    at_peers_counts: dict[tuple[str, float], tuple[float, dict[str, Pruned]]] = field(default_factory=dict)


def latency(dense: ModelProto, pruned: ModelProto, name: str, rows: np.ndarray) -> tuple[float, float]:
    """Median seconds of both, from runs in turn."""
    sessions, times = [session(dense), session(pruned)], ([], [])
    for turn in range(WARM + RUNS):
        for running, taken in zip(sessions, times, strict=True):
            began = time.perf_counter()
            running.run(None, {name: rows})
            if turn >= WARM:
                taken.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def examine(case: Case, arguments: argparse.Namespace, peer: Peer | None) -> Outcome:
    """Do everything for one case."""
    outcome = Outcome(case, case.accuracy(case.dense), case.size(case.dense))
    if abs(outcome.dense - case.known) > 0.5 / len(case.images.labels):
        sys.exit(f"{case.name}: accuracy {outcome.dense}, but {case.known} in the manifest")
    wide = has_wide_layers(case)
    outcome.methods = methods(case, arguments.keep, 1 if wide else arguments.seeds, brief=wide)
    if wide:
        outcome.by_channels = methods(case, arguments.keep, arguments.seeds, memory=SMALL)
    mine = outcome.methods["dpp"][0]
    for batch in LATENCY_BATCHES:
        outcome.latency[batch] = latency(case.dense, mine.model, case.input, case.test[:batch])
    if peer is None:
        return outcome
    peer.give(case)
    for criterion in CRITERIA:
        beside(outcome, arguments.keep, peer, criterion)
    return outcome


def beside(outcome: Outcome, keep: float, peer: Peer, criterion: str) -> None:
    """Put onnxsim beside a case that is examined: at our number of parameters, and us at its own."""
    case, mine = outcome.case, outcome.methods["dpp"][0]
    half, whole = peer.count(criterion, keep), peer.count(criterion, 1)
    note(f"{case.name}: onnxsim ({criterion}) leaves {half:,} of {whole:,} parameters at keep {keep:g}")
    if half >= 0.999 * whole:
        return
    below, above = around(lambda part: peer.count(criterion, part), mine.parameters, keep)
    for part, places in ((below, outcome.below), (above, outcome.above)):
        if part is not None:
            places.append((criterion, part))
    for part in sorted({keep, below, above} - {None}):
        outcome.peer[criterion, part] = all_modes(peer, case, criterion, part)
    known = {best_of(outcome.peer[place]).parameters: place for place in outcome.at_peers_counts}
    if half in known:
        outcome.at_peers_counts[criterion, keep] = outcome.at_peers_counts[known[half]]
        return
    own, _ = around(lambda part: our_count(case, part), half, keep)
    if own is not None:
        outcome.at_peers_counts[criterion, keep] = (
            own,
            {
                name: outcome.methods[name][0] if own == keep else ours(case, keep=own, count=half, **METHODS[name][0])
                for name in SHOWN
            },
        )


def has_wide_layers(case: Case) -> bool:
    """Whether a consumer has so many inputs that their moments take more than `SMALL` bytes."""
    few = {case.input: case.calib[:COUNTING_ROWS]}
    result = onnxdpp.prune(case.dense, few, keep=0.5, method="random", provider="cpu", memory=SMALL)
    return any(layer["observed"] == "channels" for layer in result.report["layers"])


def methods(case: Case, keep: float, seeds: int, *, brief: bool = False, **options: Any) -> dict[str, list[Pruned]]:
    """Every method of ours at one keep; `brief`: only those that cost little or say most."""
    found = {}
    for name, (own, draws) in METHODS.items():
        if not brief or name in BRIEF:
            found[name] = [ours(case, keep=keep, seed=seed, **own, **options) for seed in range(seeds if draws else 1)]
    return found


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def spread(values: Sequence[float]) -> str:
    """One figure, or mean ± deviation, in per cent."""
    if len(values) < 2:
        return percent(values[0]) if values else ""
    return f"{percent(statistics.mean(values))} ± {percent(statistics.stdev(values))}"


def best_of(runs: dict[str, Pruned | str]) -> Pruned:
    """The run with the highest accuracy."""
    return max((run for run in runs.values() if isinstance(run, Pruned)), key=lambda run: run.accuracy)


def lines_of(head: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> list[str]:
    """A Markdown table; the first `left` columns are text."""
    head = list(head)
    marks = ["---" if place < left else "---:" for place in range(len(head))]
    return ["", *("| " + " | ".join(cells) + " |" for cells in (head, marks, *rows))]


def accuracy_table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for outcome in outcomes:
        for label, found in (("", outcome.methods), (", by channels", outcome.by_channels)):
            if not found:
                continue
            mine = found["dpp"][0]
            rows.append(
                [
                    outcome.case.name + label,
                    f"{outcome.size[0]:,} → {mine.parameters:,}",
                    f"{outcome.size[1]:,} → {mine.macs:,}",
                    percent(outcome.dense),
                    *(spread([run.accuracy for run in found.get(name, [])]) for name in METHODS),
                    *(f"{100 * (outcome.dense - found[name][0].accuracy):.2f}" for name in SHOWN),
                ]
            )
    head = ["model", "parameters", "MACs per row", "dense", *METHODS, *(f"drop of {name}" for name in SHOWN)]
    return lines_of(head, rows)


def gap(mine: Pruned, rival: Pruned) -> str:
    """By how many points we are ahead."""
    return f"{100 * (mine.accuracy - rival.accuracy):+.2f}"


def same_count_table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for outcome in outcomes:
        shown = [outcome.methods[name][0] for name in SHOWN]
        cells = [outcome.case.name, percent(outcome.dense), f"{shown[0].parameters:,}"]
        cells += [percent(run.accuracy) for run in shown]
        rivals = []
        for places in (outcome.above, outcome.below):
            if not places:
                cells += ["none" if outcome.peer else "it removes nothing, and does not say so", "", ""]
                continue
            place, best = max(
                ((place, best_of(outcome.peer[place])) for place in places), key=lambda found: found[1].accuracy
            )
            cells += [f"{best.parameters:,} ({place[1]:g})", percent(best.accuracy), best.how]
            rivals.append(best)
        if rivals:
            best = max(rivals, key=lambda rival: rival.accuracy)
            cells += [gap(run, best) for run in shown]
            cells += [f"{(outcome.dense - run.accuracy) / (outcome.dense - best.accuracy):.2f}" for run in shown]
        rows.append([*cells, *[""] * (9 + 3 * len(SHOWN) - len(cells))])
    head = ["model", "dense", "onnxdpp: parameters", *SHOWN]
    head += ["onnxsim, next above: parameters (keep)", "accuracy", "best way"]
    head += ["next below: parameters (keep)", "accuracy", "best way", *(f"{name} - onnxsim" for name in SHOWN)]
    head += [f"loss of {name} / of onnxsim" for name in SHOWN]
    return lines_of(head, rows)


def their_count_table(outcomes: Sequence[Outcome], keep: float) -> list[str]:
    rows = []
    for outcome in outcomes:
        bests = {
            criterion: best_of(outcome.peer[criterion, keep])
            for criterion in CRITERIA
            if (criterion, keep) in outcome.peer
        }
        for count in sorted({best.parameters for best in bests.values()}):
            same = [criterion for criterion, best in bests.items() if best.parameters == count]
            criterion = max(same, key=lambda name: bests[name].accuracy)
            best = bests[criterion]
            cells = [outcome.case.name, percent(outcome.dense), f"{count:,}", f"{best.macs:,}"]
            cells += [percent(best.accuracy), best.how]
            if (criterion, keep) in outcome.at_peers_counts:
                own, shown = outcome.at_peers_counts[criterion, keep]
                runs = list(shown.values())
                cells += [f"{runs[0].parameters:,} ({own:g})", f"{runs[0].macs:,}"]
                cells += [*(percent(run.accuracy) for run in runs), *(gap(run, best) for run in runs)]
            rows.append([*cells, *[""] * (8 + 2 * len(SHOWN) - len(cells))])
    head = ["model", "dense", "onnxsim: parameters", "MACs", "accuracy", "best way"]
    head += ["onnxdpp: parameters (keep)", "MACs", *SHOWN, *(f"{name} - onnxsim" for name in SHOWN)]
    return lines_of(head, rows)


def ways_table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for outcome in outcomes:
        for (criterion, keep), runs in sorted(outcome.peer.items()):
            cells = [percent(run.accuracy) if isinstance(run, Pruned) else run for run in runs.values()]
            rows.append([outcome.case.name, criterion, f"{keep:g}", f"{best_of(runs).parameters:,}", *cells])
    head = [
        "model",
        "ranking",
        "keep",
        "parameters",
        "no refit",
        "finetune",
        "onnxsim + driver (seqft)",
        "blockft (Adam)",
    ]
    return lines_of(head, rows, left=2)


def latency_table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for outcome in outcomes:
        mine = outcome.methods["dpp"][0]
        cells = [outcome.case.name, f"{mine.macs / outcome.size[1]:.3f}"]
        for before, after in outcome.latency.values():
            cells += [f"{1e6 * before:.0f}", f"{1e6 * after:.0f}", f"{after / before:.2f}"]
        rows.append(cells)
    head = ["model", "MACs, pruned / dense"]
    for batch in LATENCY_BATCHES:
        head += [f"batch {batch}: dense µs", "pruned µs", "ratio"]
    return lines_of(head, rows)


def loss_table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for outcome in outcomes:
        for label, found in (("", outcome.methods), (", by channels", outcome.by_channels)):
            for name in SHOWN if found else ():
                layers = found[name][0].report["layers"]
                losses = (
                    f"{part['width']} → {part['kept']}: {part['loss']:.3f}"
                    + (f" ({part['method']})" if name.startswith("auto") else "")
                    for part in layers
                )
                rows.append([outcome.case.name + label, name, ", ".join(losses)])
    return lines_of(["model", "method", "each layer in turn: neurons or channels, loss after the refit"], rows, left=3)


def document(arguments: argparse.Namespace, outcomes: Sequence[Outcome], peer: str | None) -> str:
    """The whole Markdown file."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxdpp", "onnx", "numpy", "scipy"))
    versions += f", onnxruntime {ort.__version__}"
    rivals = f"; onnxsim {peer}, each run stopped after {arguments.peer_limit:g} s" if peer else ""
    given = (Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:])
    text = [
        f"# Networks of others at keep {arguments.keep:g}: MNIST test accuracy in per cent",
        "",
        f"- command: `python samples/real.py {shlex.join(given)}`",
        f"- machine: {processor()}; Python {platform.python_version()}, {versions}{rivals}",
        f"- {arguments.rows:,} calibration rows for both: training images, evenly spaced, no labels",
        "- all 10,000 test images: one is 0.01; the dense accuracies are those of the manifest",
        f"- `random`: mean ± sample standard deviation of seeds 0 to {arguments.seeds - 1}; seed 0 elsewhere, and for "
        "`random` where a model also has a row *by channels* (`memory` of 64 MiB)",
        "- *allocated*: `--target-parameters` of what that keep, or onnxsim, leaves; *polished*: `--polish 3`",
        "",
        "## onnxdpp, all layers at the same keep, refit affine",
        *accuracy_table(outcomes),
    ]
    if peer:
        text += ["", "## At the parameters that onnxdpp leaves", *same_count_table(outcomes)]
        text += ["", f"## At the parameters that onnxsim leaves at its keep {arguments.keep:g}"]
        text += [*their_count_table(outcomes, arguments.keep)]
        text += ["", "## onnxsim, way by way: the better of both norms", *ways_table(outcomes)]
    text += ["", f"## Latency of `dpp`: medians of {RUNS} runs in turn on one thread", *latency_table(outcomes)]
    text += ["", "## Where accuracy is lost", *loss_table(outcomes)]
    return "\n".join(text) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy and latency of pruned networks.", allow_abbrev=False)
    parser.add_argument("--models", type=Path, required=True, help="holds manifest.csv and the models")
    parser.add_argument("--data", type=Path, required=True, help="holds MNIST and datasets.py")
    parser.add_argument("--keep", type=float, default=0.5, metavar="F", help="default 0.5")
    parser.add_argument("--rows", type=int, default=4000, metavar="N", help="calibration rows (default 4000)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="for random (default 5)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="models whose file's name matches")
    parser.add_argument("--peer", type=Path, metavar="RUN_ONNXSIM.py", help="run onnxsim beside it")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="one that has onnxsim")
    parser.add_argument("--peer-limit", type=float, default=300, metavar="S", help="for one run (default 300)")
    parser.add_argument("--peer-folder", type=Path, metavar="DIR", help="keep its models there; made ones are reused")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("real.md"))
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    images = Images.of(arguments.data)
    with (arguments.models / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["accuracy_data"] == "mnist"]
    rows = [row for row in rows if fnmatch.fnmatchcase(row["file"], arguments.only)]
    rows.sort(key=lambda row: (arguments.models / row["file"]).stat().st_size)
    if not rows:
        sys.exit(f"no model with a known MNIST accuracy matches {arguments.only!r}")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        peer = None
        if arguments.peer:
            place = arguments.peer_folder or Path(folder)
            peer = Peer(arguments.peer, arguments.peer_python, arguments.peer_limit, place)
        peer_version = peer.version() if peer else None
        text = ""
        for row in rows:
            outcomes.append(examine(Case.of(row, arguments.models, images, arguments.rows), arguments, peer))
            text = document(arguments, outcomes, peer_version)
            arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

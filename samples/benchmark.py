"""All selection methods side by side: accuracy and discrepancy after pruning, and how `auto` stands among them.

    python samples/benchmark.py FOLDER [FOLDER ...] [--unit U ...] [--keep F ...] [--method M ...] [--refit R ...]
        [--layer GLOB] [--seeds N] [--max-rows N] [--jobs N] [--out TABLE.md]

A FOLDER holds ``model.onnx``, ``calib.npz`` and ``test.npz`` (the model's inputs and, where the answer is known,
``labels``), as `others.py` and the make.py of each sample write them. All layers that onnxdpp finds, or those that
match `--layer`, are pruned to the same keep; all else is at its default. Two figures, both in per cent, from the rows
of ``test.npz``, none of which is calibrated on:

- *accuracy*: rows whose largest entry in the first float output is at the label;
- *discrepancy*: ``D = sqrt(sum e_i / sum |y_i|^2)`` with ``e_i = |z_i - y_i|^2``, ``y_i`` and ``z_i`` what the first
  float output has for row i in the original and in the pruned model.

The document goes to stdout and to `--out` (with one FOLDER, default FOLDER/benchmark.md): two tables per folder, unit
and refit, a row per method, a column per keep. Methods that draw (`random`, `dpp-sample-rbf`) run with seeds 0 .. N-1
and show the mean ± the sample standard deviation. `random` is always there: a method that does not beat it does
nothing.

Below each table stands the verdict on the default. The *best single method* of a column has the best figure in it, a
choice made with the test rows that flatters it. Of accuracy the gap is ``p - q`` in points, p of the best and q of
`auto`; of discrepancy ``r - 1`` in per cent with ``r = D_auto / D_best``. The noise of a gap is one standard error,
``sqrt(sum_i d_i^2)``, from what both models do *on the same rows*:

    accuracy       d_i = (h_i - g_i) / n                      h_i, g_i in {0, 1}: best and `auto` right on row i of n
    discrepancy    d_i = r (e_i / sum e - f_i / sum f) / 2    e of `auto`, f of the best, summed over part i of the rows

The first is McNemar's ``sqrt(b + c) / n``, b and c the rows that only one of them gets right. The second is what a
bootstrap over 100 interleaved parts of the rows gives, to first order. Of a method that draws, figure and ``d_i`` are
means over the seeds. *Level* is a gap within one noise, either way, *ahead* a better figure by more; *within 2* is
behind by up to two, *behind* by more. The end counts them over all cells.

Each result is appended at once to a JSON-lines file beside the document (``benchmark.cache.jsonl`` beside
``benchmark.md``). A run that was interrupted goes on where it stopped; results of another model, of other
data or of another state of onnxdpp's source are not used. Progress is on stderr. Exit code 1: a cell failed.

References
----------
Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 1947. B. Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", SIAM 1982 (the infinitesimal
jackknife).
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

import numpy as np
import onnx
import onnxruntime as ort
from machine import machine_line
from numpy.typing import NDArray

import onnxdpp

UNITS = ("neuron", "edge")
KEEPS = {"neuron": (0.5, 0.25, 0.1, 0.05, 0.02), "edge": (0.5, 0.2, 0.1, 0.05, 0.02)}
REFITS = ("none", "linear", "affine")
DEFAULT = "auto"  # the method that the verdict is on
BATCH = 1000
PARTS = 100  # of the test rows: a noise from so many is known to 7 %
DIGITS = 9  # of gaps and noises: one row more is a gap of exactly one noise
FORMAT = b"2"  # of a cached result
TINY = sys.float_info.min
FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")

Array = NDArray[np.float64]
Result = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """Options of onnxdpp.prune, whether the choice depends on the seed, and the units where it is one of its own."""

    options: dict[str, Any]
    draws: bool = False
    units: tuple[str, ...] = UNITS

    @property
    def single(self) -> bool:
        """Whether it is no choice among the others."""
        return self.options["method"] != "auto"


METHODS = {
    "dpp-rbf": Method({"method": "dpp", "kernel": "rbf"}),
    "dpp-linear": Method({"method": "dpp", "kernel": "linear"}),
    "dpp-consumer": Method({"method": "dpp", "kernel": "consumer"}, units=("neuron",)),  # of edges: rbf
    "dpp-sample-rbf": Method({"method": "dpp-sample", "kernel": "rbf"}, draws=True),
    "obs": Method({"method": "obs"}),
    "omp": Method({"method": "omp"}),
    "wanda": Method({"method": "wanda"}),
    "fluctuation": Method({"method": "fluctuation"}),
    "auto": Method({"method": "auto"}),
    "importance": Method({"method": "importance"}),
    "random": Method({"method": "random"}, draws=True),
}


@dataclass(frozen=True)
class Cell:
    """One run: what fixes its result besides the model, the data and the source."""

    unit: str
    refit: str
    name: str
    keep: float
    seed: int
    max_rows: int | None
    layer: str | None

    def __str__(self) -> str:
        return f"{self.unit} refit {self.refit} {self.name} keep {self.keep:g} seed {self.seed}"


@dataclass(frozen=True)
class Case:
    """The three files of a FOLDER."""

    model: Path
    calib: Path
    test: Path

    @classmethod
    def of(cls, folder: Path) -> "Case":
        """Find them, or end with a message."""
        case = cls(folder / "model.onnx", folder / "calib.npz", folder / "test.npz")
        for path in (case.model, case.calib, case.test):
            if not path.is_file():
                sys.exit(f"{path} is missing. Run the sample's make.py, or others.py, first.")
        return case

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.model.resolve().parent.name


def answers(model: onnx.ModelProto, test: Path) -> Array:
    """Return the first float output for all test rows, (rows, entries)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # jobs run side by side
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output = next(value.name for value in session.get_outputs() if value.type in FLOATS)
    with np.load(test) as arrays:
        feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
    rows = len(next(iter(feeds.values())))
    batches = (slice(start, start + BATCH) for start in range(0, rows, BATCH))
    found = [session.run([output], {name: array[batch] for name, array in feeds.items()})[0] for batch in batches]
    return np.concatenate(found).reshape(rows, -1).astype(np.float64)


@functools.lru_cache(maxsize=1)
def dense(case: Case) -> tuple[Array, NDArray[np.integer[Any]] | None]:
    """Return the original's answers and the labels, where there are some."""
    with np.load(case.test) as arrays:
        labels = arrays.get("labels")
    return answers(onnx.load(case.model), case.test), labels


def in_parts(values: NDArray[Any]) -> list[float]:
    """Return sums over `PARTS` interleaved parts of the rows, to six digits."""
    sums = np.bincount(np.arange(len(values)) % PARTS, weights=values)
    return [float(f"{part:.6g}") for part in sums]


def evaluate(case: Case, model: onnx.ModelProto) -> Result:
    """Return both figures of a pruned model in per cent, and what their noise is made of."""
    before, labels = dense(case)
    after = answers(model, case.test)
    errors = np.square(after - before).sum(1)
    result: Result = {
        "rows": len(before),
        "discrepancy": 100 * float(np.sqrt(errors.sum() / np.square(before).sum())),
        "errors": in_parts(errors),
    }
    if labels is not None:
        hits = after.argmax(1) == labels
        result |= {"accuracy": 100 * float(hits.mean()), "hits": np.packbits(hits).tobytes().hex()}
    return result


def run(case: Case, cell: Cell) -> Result:
    """Prune and evaluate one cell."""
    began = time.perf_counter()
    result = onnxdpp.prune(
        case.model,
        case.calib,
        keep=cell.keep,
        unit=cell.unit,
        refit=cell.refit,
        layers=() if cell.layer is None else cell.layer,
        seed=cell.seed,
        max_rows=cell.max_rows,
        provider="cpu",
        storage="dense",  # packing and weighing are no part of the seconds
        **METHODS[cell.name].options,
    )
    seconds = time.perf_counter() - began
    layers = result.report["layers"]
    return {
        **evaluate(case, result.model),
        "seconds": round(seconds, 3),
        "kept": {layer["name"]: layer["kept"] for layer in layers},
        "loss": {layer["name"]: layer["loss"] for layer in layers},
    }


def fingerprint(case: Case) -> str:
    """Hash what a result depends on besides its cell: the three files and the source of onnxdpp."""
    package = Path(onnxdpp.__file__).parent
    digest = hashlib.sha256(FORMAT)
    for path in (case.model, case.calib, case.test, *sorted(package.rglob("*.py"))):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def read_cache(path: Path, state: str) -> dict[Cell, Result]:
    """Return the results stored under this fingerprint; a line cut short by a kill is passed over."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["state"] == state:
            found[Cell(**entry["cell"])] = entry["result"]
    return found


def compute(case: Case, cells: Sequence[Cell], cache: Path, jobs: int) -> tuple[dict[Cell, Result], dict[Cell, str]]:
    """Run what the cache does not hold, `jobs` processes side by side; return results and failures."""
    state = fingerprint(case)
    results = read_cache(cache, state)
    missing = [cell for cell in cells if cell not in results]
    print(f"{case.name}: {len(cells) - len(missing)} results cached, {len(missing)} to compute", file=sys.stderr)
    failures = {}
    if cache.exists() and not cache.read_bytes().endswith(b"\n"):
        cache.write_bytes(cache.read_bytes() + b"\n")  # or the next line would be lost with the one cut short
    # spawn: a session of onnxruntime in the parent does not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, cache.open("a") as file:
        futures = {pool.submit(run, case, cell): cell for cell in missing}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                cell = futures[future]
                try:
                    result = future.result()
                except Exception as error:
                    failures[cell] = outcome = f"{type(error).__name__}: {error}"
                else:
                    results[cell] = result
                    entry = {"state": state, "cell": asdict(cell), "result": result}
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    outcome = ", ".join(f"{name} {result[name]:.2f}" for name in FIGURES if name in result)
                    outcome += f" in {result['seconds']:.1f} s"
                print(f"{case.name} [{done}/{len(missing)}] {cell}: {outcome}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            sys.exit(130)
    return results, failures


def accuracy_gap(mine: Sequence[Result], best: Sequence[Result]) -> tuple[float, float]:
    """Return by how many points the runs `mine` have less accuracy than `best`, and the noise."""

    def right(runs: Sequence[Result]) -> Array:
        """Return how often each row is, over the runs."""
        hits = np.array([np.frombuffer(bytes.fromhex(run["hits"]), np.uint8) for run in runs])
        return np.unpackbits(hits, axis=1).mean(0)

    differences = 100 * (right(best) - right(mine)) / mine[0]["rows"]
    return float(differences.sum()), float(np.linalg.norm(differences))


def discrepancy_gap(mine: Sequence[Result], best: Sequence[Result]) -> tuple[float, float]:
    """Return by how many per cent the runs `mine` have more discrepancy than `best`, and the noise."""

    def change(runs: Sequence[Result]) -> Array:
        """Return by which share their mean discrepancy changes with the weight of each part."""
        shares = [np.array(run["errors"]) / max(sum(run["errors"]), TINY) for run in runs]
        return np.average(shares, axis=0, weights=[max(run["discrepancy"], TINY) for run in runs]) / 2

    ratio = max(DISCREPANCY.mean(mine), TINY) / max(DISCREPANCY.mean(best), TINY)
    return 100 * (ratio - 1), 100 * ratio * float(np.linalg.norm(change(mine) - change(best)))


@dataclass(frozen=True)
class Figure:
    """What the methods are compared by: the entry of a result, what a gap is counted in and how it is found."""

    name: str
    title: str
    counted: str
    better: Callable[..., str]
    gap: Callable[[Sequence[Result], Sequence[Result]], tuple[float, float]]

    def mean(self, runs: Sequence[Result]) -> float:
        """Return its mean over the seeds."""
        return statistics.mean(run[self.name] for run in runs)

    def text(self, runs: Sequence[Result] | None) -> str:
        """Return an entry of the table: a figure, mean ± deviation, or ``failed``."""
        if runs is None:
            return "failed"
        if len(runs) == 1:
            return f"{runs[0][self.name]:.2f}"
        return f"{self.mean(runs):.2f} ± {statistics.stdev(run[self.name] for run in runs):.2f}"


ACCURACY = Figure("accuracy", "Test accuracy in per cent", "points", max, accuracy_gap)
DISCREPANCY = Figure("discrepancy", "Discrepancy in per cent, on the test rows", "per cent", min, discrepancy_gap)
FIGURES = {figure.name: figure for figure in (ACCURACY, DISCREPANCY)}


@dataclass(frozen=True)
class Verdict:
    """How far the default is behind the best single method in one column."""

    best: str
    gap: float
    noise: float
    where: str

    @property
    def standing(self) -> str:
        """The gap in units of its noise, in words."""
        if self.gap < -self.noise:
            return "ahead"
        if self.gap <= self.noise:
            return "level"
        return "within 2" if self.gap <= 2 * self.noise else "behind"


@dataclass(frozen=True)
class Block:
    """The runs of one folder, unit and refit."""

    case: Case
    unit: str
    refit: str
    keeps: Sequence[float]
    runs: dict[tuple[str, float], list[Result] | None]
    """By method and keep, one for each seed; None: some failed."""

    def verdict(self, figure: Figure, keep: float) -> Verdict | None:
        """Compare the default with the best single method; None where one of them is lacking."""
        known = {name: runs for (name, at), runs in self.runs.items() if at == keep and runs is not None}
        rivals = [name for name in known if METHODS[name].single]
        if DEFAULT not in known or not rivals:
            return None
        best = figure.better(rivals, key=lambda name: figure.mean(known[name]))
        where = f"{self.case.name}, {self.unit}s, refit {self.refit}, keep {keep:g}"
        gap, noise = (round(number, DIGITS) for number in figure.gap(known[DEFAULT], known[best]))
        return Verdict(best, gap, noise, where)

    def table(self, figure: Figure) -> list[str]:
        """Return the Markdown: a row per method, then the verdict."""
        names = dict.fromkeys(name for name, _ in self.runs)
        rows = [[name, *(figure.text(self.runs[name, keep]) for keep in self.keeps)] for name in names]
        if DEFAULT in names:
            verdicts = [self.verdict(figure, keep) for keep in self.keeps]
            rows += [
                ["**best single method**", *("" if one is None else one.best for one in verdicts)],
                [
                    f"**{DEFAULT} behind it by**",
                    *("" if one is None else f"{one.gap:.2f} ± {one.noise:.2f}" for one in verdicts),
                ],
                ["**so it is**", *("" if one is None else one.standing for one in verdicts)],
            ]
        return lines_of([figure.title, *(f"keep {keep:g}" for keep in self.keeps)], rows)


def lines_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose first column is text."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return ["", *("| " + " | ".join(row) + " |" for row in (head, marks, *rows))]


def figures_of(case: Case) -> list[Figure]:
    """Return what can be told of a case: without labels there is no accuracy."""
    return [DISCREPANCY] if dense(case)[1] is None else [ACCURACY, DISCREPANCY]


def without_places(arguments: Iterable[str]) -> str:
    """Return the command with absolute paths cut to their last part: tables are shared, folders are not."""
    return shlex.join(Path(text).name if Path(text).is_absolute() else text for text in arguments)


def head(arguments: argparse.Namespace) -> list[str]:
    """Return what was run where."""
    last = arguments.seeds - 1
    seeds = f"0 to {last} (mean ± sample standard deviation)" if last else "0"
    return [
        "# All methods side by side, after pruning",
        "",
        f"- command: `python samples/benchmark.py {without_places(sys.argv[1:])}`",
        machine_line(),
        f"- seeds: {seeds} for methods that draw",
        f"- gaps: ± one standard error over the test rows; `{DEFAULT}` is *level* within one, either way",
    ]


def case_head(case: Case) -> list[str]:
    """Return the heading of a folder: how good the original is, and on how many rows."""
    before, labels = dense(case)
    rows = len(before)
    if labels is None:
        return ["", f"## {case.name}", "", f"{rows} test rows without labels."]
    accuracy = 100 * float((before.argmax(1) == labels).mean())
    return ["", f"## {case.name}", "", f"Dense: {accuracy:.2f} on {rows} test rows; one row is {100 / rows:.2g}."]


def summary(figure: Figure, verdicts: Sequence[Verdict]) -> list[str]:
    """Return how the default stands over all cells, and where it is furthest behind."""
    if not verdicts:
        return []
    count = Counter(one.standing for one in verdicts)
    good, all_of_them = count["ahead"] + count["level"], len(verdicts)
    far = max(verdicts, key=lambda one: one.gap)
    return [
        f"- {figure.name}: level with the best single method or ahead of it in {good} of {all_of_them} cells "
        f"({100 * good / all_of_them:.0f} %), ahead in {count['ahead']}; within 2 in {count['within 2']}, behind in "
        f"{count['behind']}",
        f"  - largest gap: {far.gap:.2f} ± {far.noise:.2f} {figure.counted}, to {far.best} ({far.where})",
    ]


def document(arguments: argparse.Namespace, results: dict[Case, dict[Cell, Result]]) -> str:
    """Return the Markdown: a head, the tables of each folder, and the default over all of them."""
    lines = head(arguments)
    verdicts: dict[str, list[Verdict]] = {name: [] for name in FIGURES}
    for case, found in results.items():
        lines += case_head(case)
        for block in blocks_of(arguments, case, found):
            lines += ["", f"### {case.name}: {block.unit}s, refit {block.refit}"]
            for figure in figures_of(case):
                lines += block.table(figure)
                stood = (block.verdict(figure, keep) for keep in block.keeps)
                verdicts[figure.name] += [one for one in stood if one is not None]
    if any(verdicts.values()):
        lines += ["", f"## {DEFAULT}, over all cells", ""]
        lines += [line for figure in FIGURES.values() for line in summary(figure, verdicts[figure.name])]
    return "\n".join(lines) + "\n"


def blocks_of(arguments: argparse.Namespace, case: Case, results: dict[Cell, Result]) -> list[Block]:
    """Sort the results of a folder into its blocks."""
    blocks = []
    for unit, refit in itertools.product(arguments.unit, arguments.refit):
        runs: dict[tuple[str, float], list[Result] | None] = {}
        for name, keep in itertools.product(methods_of(arguments, unit), keeps_of(arguments, unit)):
            cells = seeds_of(arguments, unit, refit, name, keep)
            known = [results[cell] for cell in cells if cell in results]
            runs[name, keep] = known if len(known) == len(cells) else None
        blocks.append(Block(case, unit, refit, keeps_of(arguments, unit), runs))
    return blocks


def methods_of(arguments: argparse.Namespace, unit: str) -> list[str]:
    """Return the methods asked for that are of their own for a unit."""
    return [name for name in arguments.method if unit in METHODS[name].units]


def keeps_of(arguments: argparse.Namespace, unit: str) -> Sequence[float]:
    """Return the keeps asked for, or those of a unit."""
    return arguments.keep or KEEPS[unit]


def seeds_of(arguments: argparse.Namespace, unit: str, refit: str, name: str, keep: float) -> list[Cell]:
    """Return the runs of one entry of the table."""
    seeds = range(arguments.seeds if METHODS[name].draws else 1)
    return [Cell(unit, refit, name, keep, seed, arguments.max_rows, arguments.layer) for seed in seeds]


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Return all runs of a folder, seeds innermost."""
    return [
        cell
        for unit, refit in itertools.product(arguments.unit, arguments.refit)
        for keep, name in itertools.product(keeps_of(arguments, unit), methods_of(arguments, unit))
        for cell in seeds_of(arguments, unit, refit, name, keep)
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="All methods side by side: accuracy and discrepancy as Markdown tables.", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, nargs="+", help="holds model.onnx, calib.npz and test.npz")
    parser.add_argument("--unit", nargs="+", default=UNITS, choices=UNITS)
    defaults = "; ".join(f"{unit}s {' '.join(f'{keep:g}' for keep in keeps)}" for unit, keeps in KEEPS.items())
    parser.add_argument("--keep", type=float, nargs="+", metavar="F", help=f"default: {defaults}")
    parser.add_argument("--method", nargs="+", default=tuple(METHODS), choices=tuple(METHODS))
    parser.add_argument("--refit", nargs="+", default=("affine",), choices=REFITS)
    parser.add_argument("--layer", metavar="GLOB", help="prune only layers whose name matches")
    parser.add_argument("--seeds", type=int, default=5, help="for methods that draw (default 5)")
    parser.add_argument("--max-rows", type=int, help="calibrate on so many rows, evenly spaced")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default 1)")
    parser.add_argument("--out", type=Path, help="the document (with one FOLDER, default FOLDER/benchmark.md)")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    if len(arguments.folder) > 1 and arguments.out is None:
        parser.error("several folders share one document: say where with --out")
    arguments.method = [name for name in METHODS if name in {*arguments.method, "random"}]
    return arguments


def main() -> None:
    arguments = parse()
    cases = [Case.of(folder) for folder in arguments.folder]
    out = arguments.out or arguments.folder[0] / "benchmark.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = cells_of(arguments)
    results: dict[Case, dict[Cell, Result]] = {}
    reasons: Counter[str] = Counter()
    for case in cases:
        results[case], failures = compute(case, cells, out.with_suffix(".cache.jsonl"), arguments.jobs)
        reasons.update(failures.values())
    text = document(arguments, results)
    out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    for reason, count in reasons.most_common():
        print(f"{count} of {len(cells) * len(cases)} failed: {reason}", file=sys.stderr)
    sys.exit(1 if reasons else 0)


if __name__ == "__main__":
    main()

"""Test accuracy after pruning: every method, keep, unit and refit on one trained model, as a Markdown table.

    python samples/benchmark.py FOLDER [--keep F ...] [--unit U ...] [--method M ...] [--refit R ...]
        [--seeds N] [--max-rows N] [--jobs N] [--out TABLE.md]

FOLDER holds ``model.onnx``, ``calib.npz`` and ``test.npz`` (the model's inputs and ``labels``), as the
make.py of each sample writes them. All layers that onnxdpp finds are pruned to the same keep; all else is at
its default. The answer of the model is the largest entry of its first output.

The table goes to stdout and to `--out` (default FOLDER/benchmark.md): one block per unit and refit, a row per
method, a column per keep, entries in per cent. Methods that draw (`random`, `dpp-sample-rbf`) run with seeds
0 .. N-1 and show the mean ± the sample standard deviation. `random` is always there: a method that does not
beat it does nothing.

Each result is appended at once to a JSON-lines file beside the table (``benchmark.cache.jsonl`` beside
``benchmark.md``). A run that was interrupted goes on where it stopped; results of another model, of other
data or of another state of onnxdpp's source are not used. Progress is on stderr. Exit code 1: a cell failed.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

import numpy as np
import onnx
import onnxruntime as ort
from machine import processor

import onnxdpp

KEEPS = (0.5, 0.25, 0.1, 0.05, 0.02)
UNITS = ("neuron", "edge")
REFITS = ("none", "linear", "affine")


@dataclass(frozen=True)
class Method:
    """A method as onnxdpp.prune takes it, and whether its choice depends on the seed."""

    method: str
    kernel: str
    draws: bool


METHODS = {
    "dpp-rbf": Method("dpp", "rbf", draws=False),
    "dpp-linear": Method("dpp", "linear", draws=False),
    "dpp-sample-rbf": Method("dpp-sample", "rbf", draws=True),
    "obs": Method("obs", "rbf", draws=False),
    "omp": Method("omp", "rbf", draws=False),
    "wanda": Method("wanda", "rbf", draws=False),
    "fluctuation": Method("fluctuation", "rbf", draws=False),
    "auto": Method("auto", "rbf", draws=False),
    "importance": Method("importance", "rbf", draws=False),
    "random": Method("random", "rbf", draws=True),
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


@dataclass(frozen=True)
class Case:
    """The three files of FOLDER."""

    model: Path
    calib: Path
    test: Path

    @classmethod
    def of(cls, folder: Path) -> "Case":
        """Find them, or end with a message."""
        case = cls(folder / "model.onnx", folder / "calib.npz", folder / "test.npz")
        for path in (case.model, case.calib, case.test):
            if not path.is_file():
                sys.exit(f"{path} is missing. Run the sample's make.py first.")
        return case


def accuracy(model: onnx.ModelProto, test: Path) -> float:
    """Return the fraction of test rows whose largest entry in the first output is at the label."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # jobs run side by side
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with np.load(test) as arrays:
        feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
        labels = arrays["labels"]
    hits = 0
    for start in range(0, len(labels), 1000):
        rows = slice(start, start + 1000)
        answer = session.run(None, {name: array[rows] for name, array in feeds.items()})[0]
        hits += int((answer.argmax(-1) == labels[rows]).sum())
    return hits / len(labels)


def run(case: Case, cell: Cell) -> dict[str, Any]:
    """Prune and evaluate one cell."""
    method = METHODS[cell.name]
    began = time.perf_counter()
    result = onnxdpp.prune(
        case.model,
        case.calib,
        keep=cell.keep,
        unit=cell.unit,
        method=method.method,
        kernel=method.kernel,
        refit=cell.refit,
        seed=cell.seed,
        max_rows=cell.max_rows,
        provider="cpu",
    )
    seconds = time.perf_counter() - began
    layers = result.report["layers"]
    return {
        "accuracy": accuracy(result.model, case.test),
        "seconds": round(seconds, 3),
        "kept": {layer["name"]: layer["kept"] for layer in layers},
        "loss": {layer["name"]: layer["loss"] for layer in layers},
    }


def fingerprint(case: Case) -> str:
    """Hash what a result depends on besides its cell: the three files and the source of onnxdpp."""
    package = Path(onnxdpp.__file__).parent
    digest = hashlib.sha256()
    for path in (case.model, case.calib, case.test, *sorted(package.rglob("*.py"))):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def read_cache(path: Path, state: str) -> dict[Cell, dict[str, Any]]:
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


def compute(
    case: Case, cells: Sequence[Cell], cache: Path, jobs: int
) -> tuple[dict[Cell, dict[str, Any]], dict[Cell, str]]:
    """Run what the cache does not hold, `jobs` processes side by side; return results and failures."""
    state = fingerprint(case)
    results = read_cache(cache, state)
    missing = [cell for cell in cells if cell not in results]
    print(f"{len(cells) - len(missing)} results cached, {len(missing)} to compute", file=sys.stderr)
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
                    failures[cell] = f"{type(error).__name__}: {error}"
                    outcome = failures[cell]
                else:
                    results[cell] = result
                    entry = {"state": state, "cell": asdict(cell), "result": result}
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    outcome = f"{100 * result['accuracy']:.2f} % in {result['seconds']:.1f} s"
                print(
                    f"[{done}/{len(missing)}] {cell.unit} refit {cell.refit} {cell.name} keep {cell.keep:g} "
                    f"seed {cell.seed}: {outcome}",
                    file=sys.stderr,
                    flush=True,
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            sys.exit(130)
    return results, failures


def entry_text(accuracies: Sequence[float | None]) -> str:
    """Return one entry of the table: a figure, mean ± deviation, or ``failed``."""
    known = [100 * value for value in accuracies if value is not None]
    if len(known) < len(accuracies):
        return "failed"
    if len(known) == 1:
        return f"{known[0]:.2f}"
    return f"{statistics.mean(known):.2f} ± {statistics.stdev(known):.2f}"


def without_places(arguments: Iterable[str]) -> str:
    """Return the command with absolute paths cut to their last part: tables are shared, folders are not."""
    return shlex.join(Path(text).name if Path(text).is_absolute() else text for text in arguments)


def table(arguments: argparse.Namespace, case: Case, results: dict[Cell, dict[str, Any]]) -> str:
    """Return the Markdown: a head that says what was run where, then one block per unit and refit."""
    with np.load(case.test) as arrays:
        rows = len(arrays["labels"])
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxdpp", "onnx", "numpy", "scipy"))
    dense = 100 * accuracy(onnx.load(case.model), case.test)
    last = arguments.seeds - 1
    seeds = f"0 to {last} (mean ± sample standard deviation)" if last else "0"
    lines = [
        f"# Test accuracy in per cent after pruning: {case.model.resolve().parent.name}",
        "",
        f"- command: `python samples/benchmark.py {without_places(sys.argv[1:])}`",
        f"- machine: {processor()}; Python {platform.python_version()}, {versions}, onnxruntime {ort.__version__}",
        f"- dense: {dense:.2f} on {rows} test rows (one row is {100 / rows:.2g})",
        f"- seeds: {seeds} for methods that draw",
    ]
    for unit, refit in itertools.product(arguments.unit, arguments.refit):
        lines += [
            "",
            f"## unit {unit}, refit {refit}",
            "",
            "| method | " + " | ".join(f"keep {keep:g}" for keep in arguments.keep) + " |",
            "|---|" + "---:|" * len(arguments.keep),
        ]
        for name in arguments.method:
            entries = []
            for keep in arguments.keep:
                cells = cells_of(arguments, [unit], [refit], [name], [keep])
                entries.append(entry_text([results.get(cell, {}).get("accuracy") for cell in cells]))
            lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def cells_of(
    arguments: argparse.Namespace,
    units: Sequence[str],
    refits: Sequence[str],
    names: Sequence[str],
    keeps: Sequence[float],
) -> list[Cell]:
    """Return the runs of a part of the table, seeds innermost."""
    return [
        Cell(unit, refit, name, keep, seed, arguments.max_rows)
        for unit, refit, keep, name in itertools.product(units, refits, keeps, names)
        for seed in range(arguments.seeds if METHODS[name].draws else 1)
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Test accuracy of all methods on one model, as a Markdown table.", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="holds model.onnx, calib.npz and test.npz")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, metavar="F")
    parser.add_argument("--unit", nargs="+", default=UNITS, choices=UNITS)
    parser.add_argument("--method", nargs="+", default=tuple(METHODS), choices=tuple(METHODS))
    parser.add_argument("--refit", nargs="+", default=REFITS, choices=REFITS)
    parser.add_argument("--seeds", type=int, default=5, help="for methods that draw (default 5)")
    parser.add_argument("--max-rows", type=int, help="calibrate on so many rows, evenly spaced")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default 1)")
    parser.add_argument("--out", type=Path, help="the table (default FOLDER/benchmark.md)")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    arguments.method = [name for name in METHODS if name in {*arguments.method, "random"}]
    return arguments


def main() -> None:
    arguments = parse()
    case = Case.of(arguments.folder)
    out = arguments.out or arguments.folder / "benchmark.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = cells_of(arguments, arguments.unit, arguments.refit, arguments.method, arguments.keep)
    results, failures = compute(case, cells, out.with_suffix(".cache.jsonl"), arguments.jobs)
    text = table(arguments, case, results)
    out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    for reason, count in Counter(failures.values()).most_common():
        print(f"{count} of {len(cells)} failed: {reason}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

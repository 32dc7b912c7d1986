"""Figure 1 of arXiv:2006.16617 again: prune the first layer by every method, and count errors on the test rows.

    python samples/papers/reproduce.py FOLDER --dataset mnist|cifar10 --out RESULTS.jsonl
        [--repeats N] [--limit METHOD[:REFIT]=N ...] [--percent P ...] [--threads N]

FOLDER is what `train.py` left. Only the first layer is pruned: its edges to P per cent of those into each neuron, or
its neurons to the published number that leaves as many parameters (`COUNTS`). Beta is 10 (over the number of rows, on
sums of squares: 10 on mean squares here), epsilon 0.01, and all training rows are observed.

=============== ======= =========================================================================== =======
method          unit    which stay                                                                  draws
=============== ======= =========================================================================== =======
dpp-edge        edge    a k-DPP draw for each neuron, of what its edges carry                       yes
divnet          neuron  a k-DPP draw, of the neurons' activations (after the sigmoid)               yes
random-edge     edge    uniformly                                                                   yes
random-node     neuron  uniformly                                                                   yes
importance-edge edge    the largest weights                                                         no
importance-node neuron  the largest mean outgoing weights                                           no
auto-edge       edge    onnxdpp's default, a contest of methods; refit with an intercept            no
auto-node       neuron  the same                                                                    no
=============== ======= =========================================================================== =======

The first six are run without refit (``none``) and with the papers' own (``linear``), from the same draws; what draws is
repeated with seeds 0 .. N-1 (`--repeats`; `--limit` lowers that for the methods and refits it names). ``auto`` is
``onnxdpp.prune(..., layers=first)`` with all else at its default: nothing of the papers', on the same axes.

`--out` gets a line for every finished run; started again, the command does what is missing. A run of several draws has
the seconds of all of them.
Seeds come in turn, and percentages in the order given (the default: from the most telling), so that a run that was
stopped is as even as can be. Test errors are of all rows of ``test.npz``, by onnxruntime. Progress is on stderr.
"""

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark import Case, answers
from first_layer import FirstLayer
from machine import machine_line
from results import METHODS, Cell, Result, append, read_results, refits

import onnxdpp

BETA, EPSILON = 10.0, 0.01
PERCENTS = (20, 50, 90, 30, 70, 40, 60, 80)
TOGETHER = "dpp-edge"  # all its repeats are drawn at once; see `draws`
COUNTS = {
    "mnist": {
        20: (256, 156), 30: (287, 235), 40: (317, 313), 50: (348, 392),
        60: (378, 470), 70: (409, 548), 80: (439, 627), 90: (470, 705),
    },
    "cifar10": {
        20: (397, 614), 30: (472, 921), 40: (548, 1228), 50: (623, 1536),
        60: (699, 1843), 70: (774, 2150), 80: (849, 2457), 90: (925, 2764),
    },
}  # fmt: skip
"""Neurons, and edges into each neuron, that stay at each percentage: equal numbers of parameters, as published."""


@dataclass(frozen=True)
class Batch:
    """Runs of one method at one percentage.

    Attributes
    ----------
    seeds : dict
        From each seed to the refits that are wanted.
    """

    method: str
    percent: int
    seeds: dict[int, tuple[str, ...]]

    def lacking(self, results: dict[Cell, Result]) -> dict[int, tuple[str, ...]]:
        """What of the seeds is not among the results."""
        missing = {
            seed: tuple(refit for refit in which if Cell(self.method, self.percent, refit, seed) not in results)
            for seed, which in self.seeds.items()
        }
        return {seed: which for seed, which in missing.items() if which}


def wanted(
    names: Sequence[str], percents: Sequence[int], repeats: int, limits: dict[tuple[str, str], int]
) -> Iterator[Batch]:
    """What is to run: one seed after the other, but all at once where they have the work in common."""
    for seed, percent, name in itertools.product(range(repeats), percents, names):
        if seed and (name == TOGETHER or not METHODS[name].draws):
            continue
        seeds = {
            each: tuple(refit for refit in refits(name) if each < limits.get((name, refit), repeats))
            for each in (range(repeats) if name == TOGETHER else [seed])
        }
        if any(seeds.values()):
            yield Batch(name, percent, {each: which for each, which in seeds.items() if which})


class Reproduction:
    """A network whose first layer is pruned in all ways.

    Parameters
    ----------
    case : Case
        Its files.
    counts : dict
        Of the dataset; see `COUNTS`.
    executor : Executor
    """

    def __init__(self, case: Case, counts: dict[int, tuple[int, int]], executor: ThreadPoolExecutor) -> None:
        self._case = case
        self._counts = counts
        self._layer = FirstLayer(case.model, case.calib, executor)
        with np.load(case.test) as arrays:
            self._labels = arrays["labels"]

    def error(self, model: onnx.ModelProto) -> float:
        """Test rows that a model gets wrong, in per cent."""
        hits = answers(model, self._case.test).argmax(1) == self._labels
        return round(100 * (1 - float(hits.mean())), 6)

    def run(self, batch: Batch, missing: dict[int, tuple[str, ...]]) -> Iterator[tuple[Cell, Result]]:
        """Each missing result of a batch: kept count, error, loss at the consumers, seconds."""
        method = METHODS[batch.method]
        k = self._counts[batch.percent][0 if method.unit == "neuron" else 1]
        if method.method == "auto":
            yield Cell(batch.method, batch.percent, "affine", 0), self._default(method.unit, k)
            return
        drawn = None
        began = time.perf_counter()
        if batch.method == TOGETHER:
            drawn = self._layer.draws(k, len(batch.seeds), beta=BETA, epsilon=EPSILON, seed=0)
        for seed, which in missing.items():
            if drawn is None:
                keep = self._layer.choose(method.unit, k, method.method, beta=BETA, epsilon=EPSILON, seed=seed)
            else:
                keep = drawn[seed]
            if len(keep) != k:
                raise ValueError(f"{len(keep)} were kept and not {k}")
            for refit in which:
                model, loss = self._layer.model(method.unit, keep, refit)
                yield Cell(batch.method, batch.percent, refit, seed), self._result(model, k, loss, began)
                began = time.perf_counter()

    def _default(self, unit: str, k: int) -> Result:
        """What onnxdpp does when nothing is asked of it but the count."""
        began = time.perf_counter()
        pruned = onnxdpp.prune(
            self._case.model, self._case.calib, keep=k / self._layer.width(unit), unit=unit, layers=self._layer.name,
            provider="cpu", storage="dense",
        )  # fmt: skip
        (told,) = pruned.report["layers"]
        if told["kept"] != k:
            raise ValueError(f"{told['kept']} were kept and not {k}")
        return {**self._result(pruned.model, k, told["loss"], began), "chosen": told["method"]}

    def _result(self, model: onnx.ModelProto, k: int, loss: float | None, began: float) -> Result:
        seconds = time.perf_counter() - began
        return {
            "kept": k,
            "error": self.error(model),
            "loss": None if loss is None else float(f"{loss:.6g}"),
            "seconds": round(seconds, 2),
        }


def state(case: Case) -> str:
    """Hash the three files that results depend on."""
    digest = hashlib.sha256()
    for path in (case.model, case.calib, case.test):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def limit(text: str) -> tuple[tuple[tuple[str, str], ...], int]:
    """METHOD[:REFIT]=N as ((method, refit), ...) and N."""
    name, _, count = text.partition("=")
    method, _, refit = name.partition(":")
    if method not in METHODS or (refit and refit not in refits(method)) or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not METHOD=N or METHOD:REFIT=N, of {', '.join(METHODS)}")
    return tuple((method, each) for each in ([refit] if refit else refits(method))), int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description="Figure 1 of the papers, again.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="holds model.onnx, calib.npz and test.npz; see train.py")
    parser.add_argument("--dataset", choices=COUNTS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="results; what it holds already is not run again")
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--percent", type=int, choices=sorted(PERCENTS), nargs="+", default=PERCENTS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--limit", type=limit, action="append", default=[], help="METHOD[:REFIT]=N repeats at most")
    parser.add_argument("--threads", type=int, default=2, help="outputs solved side by side; no result depends on it")
    arguments = parser.parse_args()

    case = Case.of(arguments.folder)
    files = state(case)
    head, results = read_results(arguments.out)
    if head and head["files"] != files:
        sys.exit(f"{arguments.out} has results of other files. Remove it, or name another --out.")
    limits = {which: count for several, count in arguments.limit for which in several}
    todo = list(wanted(arguments.method, arguments.percent, arguments.repeats, limits))
    with threadpool_limits(1), ThreadPoolExecutor(arguments.threads) as executor:
        work = Reproduction(case, COUNTS[arguments.dataset], executor)
        if not head:
            head = {
                "dataset": arguments.dataset,
                "files": files,
                "machine": machine_line().removeprefix("- machine: "),
                "unpruned": work.error(onnx.load(case.model)),
            }
            append(arguments.out, head)
        print(f"unpruned: test error {head['unpruned']:.2f}", file=sys.stderr, flush=True)
        for number, batch in enumerate(todo, start=1):
            missing = batch.lacking(results)
            for cell, result in work.run(batch, missing) if missing else ():
                results[cell] = result
                append(arguments.out, {"cell": asdict(cell), "result": result})
                told = f"test error {result['error']:.2f} in {result['seconds']:.1f} s"
                print(f"[{number}/{len(todo)}] {cell}: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

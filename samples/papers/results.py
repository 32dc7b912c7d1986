"""The runs of `reproduce.py`: what they are called, how they are stored, and what they are together.

A file of results has a JSON object in each line: first the head (dataset, machine, test error of the unpruned network),
then a run in each, in the order in which they came to an end.
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One of the figure's.

    Attributes
    ----------
    unit : {"neuron", "edge"}
    method : str
        What `onnxdpp.prune` calls it.
    title : str
        What figure and tables call it.
    draws : bool
        Whether its choice depends on the seed.
    """

    unit: str
    method: str
    title: str
    draws: bool = False


METHODS = {
    "importance-node": Method("neuron", "importance", "importance node"),
    "random-node": Method("neuron", "random", "random node", draws=True),
    "divnet": Method("neuron", "dpp-sample", "Divnet (DPP node)", draws=True),
    "importance-edge": Method("edge", "importance", "importance edge"),
    "random-edge": Method("edge", "random", "random edge", draws=True),
    "dpp-edge": Method("edge", "dpp-sample", "DPP edge", draws=True),
    "auto-node": Method("neuron", "auto", "onnxdpp's default, nodes"),
    "auto-edge": Method("edge", "auto", "onnxdpp's default, edges"),
}
REFITS = ("none", "linear")
PERCENTS = (20, 30, 40, 50, 60, 70, 80, 90)


def refits(name: str) -> tuple[str, ...]:
    """What a method is run with."""
    return ("affine",) if METHODS[name].method == "auto" else REFITS


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    percent: int
    refit: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.percent} % refit {self.refit} seed {self.seed}"


def read_results(path: Path) -> tuple[dict[str, Any], dict[Cell, Result]]:
    """The head of a file of results, and the runs that it holds; a line cut short by a kill is passed over."""
    head: dict[str, Any] = {}
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "cell" in entry:
            results[Cell(**entry["cell"])] = entry["result"]
        else:
            head = entry
    return head, results


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a file of results, by a single write: several runs may share the file."""
    cut = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(cut) + json.dumps(entry) + "\n")


@dataclass(frozen=True)
class Summary:
    """Test errors of the repeats of one point, in per cent.

    Attributes
    ----------
    mean : float
    deviation : float
        Of the sample, n - 1 below; 0 for a method that does not draw, NaN for a single draw.
    count : int
    """

    mean: float
    deviation: float
    count: int

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN for a single draw."""
        return self.deviation / math.sqrt(self.count)


Points = dict[tuple[str, str, int], Summary]
"""By method, refit and percent."""


def summaries(results: dict[Cell, Result]) -> Points:
    """What the repeats of each point are together."""
    errors: dict[tuple[str, str, int], list[float]] = {}
    for cell, result in results.items():
        errors.setdefault((cell.method, cell.refit, cell.percent), []).append(result["error"])
    return {point: _summary(point[0], found) for point, found in errors.items()}


def _summary(method: str, errors: list[float]) -> Summary:
    alone = math.nan if METHODS[method].draws else 0.0
    deviation = statistics.stdev(errors) if len(errors) > 1 else alone
    return Summary(statistics.mean(errors), deviation, len(errors))


def gap(first: Summary, second: Summary) -> tuple[float, float]:
    """By how many points the first errs more, and the standard error of that; of a single draw NaN."""
    return first.mean - second.mean, math.hypot(first.error, second.error)


def counts(found: Iterable[Summary]) -> str:
    """How many repeats there are, in words: ``10``, or ``3 to 10``."""
    numbers = sorted({summary.count for summary in found})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

"""What `compare_methods` found, as plain data, JSON and CSV: error against the parameters that are left.

A *run* is one pruned model. A *curve* is one method for one unit: a point for each keep, with the mean and the sample
standard deviation over the runs of that point. The JSON Schema ``schemas/comparison.json`` says what the keys mean.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from onnxdpp.report import ModelSize

SCHEMA = "onnxdpp/comparison/1"
CLASSIFICATION = "classification error"
DISTANCE = "relative L2"
HELD_OUT_ROWS = "held-out calibration rows"
COLUMNS = ("unit", "method", "keep", "seed", "parameters", "error")


@dataclass(frozen=True)
class Run:
    """One pruned model.

    Attributes
    ----------
    unit : {"neuron", "edge"}
    method : str
    keep : float
        As asked for; of neurons that are matched, the keep of the edges that weigh as much.
    seed : int
    kept : dict
        Layer -> how many of its neurons, or of the edges into each output, stay.
    parameters : int or None
        Entries of all float constants that are not zero; None where the run failed.
    error : float or None
        On rows that it was not fitted to; None where the run failed.
    seconds : float
    """

    unit: str
    method: str
    keep: float
    seed: int
    kept: dict[str, int]
    parameters: int | None
    error: float | None
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Everything about one call of `compare_methods`.

    Attributes
    ----------
    model : ModelSize
        Of the original.
    measure : {"classification error", "relative L2"}
    unpruned : float
        The error of the original.
    data : str
        What the errors are measured on.
    judged_rows, rows : int
        Rows that the errors are measured on; rows of the calibration data.
    """

    model: ModelSize
    measure: str
    unpruned: float
    data: str
    judged_rows: int
    rows: int
    runs: list[Run]
    provider: str
    notices: list[str]
    options: dict[str, Any]
    versions: dict[str, str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON has them."""
        return {
            "schema": SCHEMA,
            "model": asdict(self.model),
            "measure": self.measure,
            "unpruned": self.unpruned,
            "data": self.data,
            "judged_rows": self.judged_rows,
            "rows": self.rows,
            "curves": curves(self.runs),
            "runs": [asdict(run) for run in self.runs],
            "provider": self.provider,
            "notices": self.notices,
            "options": self.options,
            "versions": self.versions,
            "seconds": self.seconds,
        }


def curves(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The curve of each unit and method, in the order of the runs."""
    found: dict[tuple[str, str], dict[float, list[Run]]] = {}
    for run in runs:
        found.setdefault((run.unit, run.method), {}).setdefault(run.keep, []).append(run)
    return [
        {"unit": unit, "method": method, "points": [_point(keep, same) for keep, same in points.items()]}
        for (unit, method), points in found.items()
    ]


def as_csv(found: dict[str, Any]) -> str:
    """One line for each run, numbers in full; without parameters and error where a run failed.

    Parameters
    ----------
    found : dict
        As the JSON Schema ``comparison`` says.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found["runs"])
    return text.getvalue()


def _point(keep: float, runs: Sequence[Run]) -> dict[str, Any]:
    errors = [run.error for run in runs if run.error is not None]
    sizes = [run.parameters for run in runs if run.parameters is not None]
    return {
        "keep": keep,
        "runs": len(errors),
        "parameters": fmean(sizes) if sizes else None,
        "error": fmean(errors) if errors else None,
        "deviation": stdev(errors) if len(errors) > 1 else None,
    }

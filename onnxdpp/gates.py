"""Gates: what a pruned model must keep to, judged by the figures of its report, old or new.

A gate compares the unrounded figure with its limit; at the limit it passes. A figure that is missing, or no number,
does not pass. A report is here what `prune` or `evaluate` gives (schemas ``report`` and ``evaluation``). Where pruning
was tried on other data, or on rows held out, those answers count and not the ones on the calibration rows.

An earlier report is a gate for each figure that it has: discrepancy (1 % more is allowed, since another kind of
processor rounds otherwise), agreement, accuracy and the ratio of sizes may not be worse than they were. Latency is not
compared with another day's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from onnxdpp.errors import UsageError
from onnxdpp.report import plain, worst

SLACK = 1.01
"""How far a discrepancy may be above an earlier one."""


@dataclass(frozen=True)
class Limits:
    """What is asked; None where it is not.

    Attributes
    ----------
    max_discrepancy : float, at least 0
        Relative L2 of the worst output; of outputs that are no floats, the share of entries that differ.
    max_accuracy_drop : float, -1 to 1
        Of the accuracy, as a fraction of rows, in the worst output; a negative one asks for a gain.
    min_agreement : float, 0 to 1
        Of the worst output that looks like classes.
    max_size_ratio : float above 0
        File bytes, the original's being 1.
    min_speedup : float above 0
        The original's latency in units of the pruned model's, for the batch where it is least.
    baseline : report, optional
        Of an earlier run.
    """

    max_discrepancy: float | None = None
    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    max_size_ratio: float | None = None
    min_speedup: float | None = None
    baseline: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = plain(getattr(self, name))
            object.__setattr__(self, name, value)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value <= high:
                span = f"from {low:g} to {high:g}" if high < math.inf else "0 or above" if low == 0 else "above 0"
                raise UsageError(f"{name} is {value!r}; it must be a number {span}.")
        if self.baseline is not None and not _has_figures(self.baseline):
            raise UsageError("The baseline is no report of onnxdpp prune or evaluate.")

    @property
    def on_answers(self) -> bool:
        """Whether a gate looks at what the models answer."""
        wishes = (self.max_discrepancy, self.max_accuracy_drop, self.min_agreement, self.baseline)
        return any(wish is not None for wish in wishes)

    def as_given(self, baseline: str | None) -> dict[str, Any]:
        """All of them, for a report; of the baseline, its name."""
        return {**{name: getattr(self, name) for name in RANGES}, "baseline": baseline}


TINY = 5e-324
RANGES = {
    "max_discrepancy": (0.0, math.inf),
    "max_accuracy_drop": (-1.0, 1.0),
    "min_agreement": (0.0, 1.0),
    "max_size_ratio": (TINY, math.inf),
    "min_speedup": (TINY, math.inf),
}


@dataclass(frozen=True)
class Figures:
    """What gates look at; None where a report does not have it."""

    discrepancy: float | None
    agreement: float | None
    accuracy: float | None
    accuracy_drop: float | None
    size_ratio: float | None
    speedup: float | None


def figures(report: Mapping[str, Any]) -> Figures:
    """The figures of a report: of its worst output, of its slowest batch."""
    tried = report.get("evaluation") or report
    outputs, accuracies = tried.get("discrepancy", {}).values(), tried.get("accuracy", {}).values()
    distance = worst(outputs)
    agreements = [part["agreement"] for part in outputs if part.get("agreement") is not None]
    speeds = [part["before"] / part["after"] for part in tried.get("latency", ())]
    sizes = [report["model"][side]["bytes"] for side in ("before", "after")]
    return Figures(
        discrepancy=None if distance is None or math.isinf(distance) else distance,
        agreement=min(agreements, default=None),
        accuracy=min((part["after"] for part in accuracies), default=None),
        # From counts: a difference of two accuracies is off by its last bits.
        accuracy_drop=max(((part["lost"] - part["gained"]) / part["rows"] for part in accuracies), default=None),
        size_ratio=sizes[1] / sizes[0],
        speedup=min(speeds, default=None),
    )


def verdicts(report: Mapping[str, Any], limits: Limits) -> list[dict[str, Any]]:
    """Each gate that is asked for: ``gate``, ``value`` (None where missing), ``limit`` and ``passed``."""
    found = figures(report)
    asked = [
        ("max-discrepancy", found.discrepancy, limits.max_discrepancy),
        ("max-accuracy-drop", found.accuracy_drop, limits.max_accuracy_drop),
        ("min-agreement", found.agreement, limits.min_agreement),
        ("max-size-ratio", found.size_ratio, limits.max_size_ratio),
        ("min-speedup", found.speedup, limits.min_speedup),
    ]
    if limits.baseline is not None:
        old = figures(limits.baseline)
        asked += [
            ("baseline max-discrepancy", found.discrepancy, _times(SLACK, old.discrepancy)),
            ("baseline min-accuracy", found.accuracy, old.accuracy),
            ("baseline min-agreement", found.agreement, old.agreement),
            ("baseline max-size-ratio", found.size_ratio, old.size_ratio),
        ]
    return [_verdict(gate, value, limit) for gate, value, limit in asked if limit is not None]


def _verdict(gate: str, value: float | None, limit: float) -> dict[str, Any]:
    if value is None or not math.isfinite(value):
        return {"gate": gate, "value": None, "limit": limit, "passed": False}
    passed = value <= limit if is_most(gate) else value >= limit
    return {"gate": gate, "value": value, "limit": limit, "passed": passed}


def is_most(gate: str) -> bool:
    """Whether a gate's limit is the most, not the least, that passes."""
    return gate.rpartition(" ")[2].startswith("max-")


def shown(verdict: Mapping[str, Any]) -> tuple[str, str]:
    """Value and limit of a verdict, with as many digits, four at least, as it takes to tell them apart.

    >>> shown({"value": 0.100000001, "limit": 0.1}), shown({"value": 2 / 3, "limit": 0.5})
    (('0.100000001', '0.1'), ('0.6667', '0.5'))
    """
    value, limit = verdict["value"], verdict["limit"]
    if value is None:
        return "missing", f"{limit:.4g}"
    digits = next((n for n in range(4, 17) if value == limit or f"{value:.{n}g}" != f"{limit:.{n}g}"), 17)
    return f"{value:.{digits}g}", f"{limit:.{digits}g}"


def told(verdict: Mapping[str, Any]) -> str:
    """One line about a gate that is missed.

    >>> told({"gate": "max-size-ratio", "value": 0.6, "limit": 0.5})
    'Gate max-size-ratio is missed: 0.6 is above 0.5.'
    """
    value, limit = shown(verdict)
    if verdict["value"] is None:
        return f"Gate {verdict['gate']} is missed: there is no figure to hold against {limit}."
    return f"Gate {verdict['gate']} is missed: {value} is {'above' if is_most(verdict['gate']) else 'below'} {limit}."


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _has_figures(report: Mapping[str, Any]) -> bool:
    """Whether all that gates look at can be read."""
    try:
        numbers = [getattr(figures(report), field.name) for field in fields(Figures)]
        return all(number is None or math.isfinite(number) for number in numbers)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        return False

"""What a user may ask of `prune`, checked before any work is done."""

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from operator import index
from typing import Any

from onnxdpp.algebra.refit import FORMS
from onnxdpp.algebra.selection import KERNELS, METHODS, PATTERNED, Rule, pattern_sizes
from onnxdpp.errors import UsageError
from onnxdpp.graph.storage import STORAGES, VALUES
from onnxdpp.report import SCHEMA, plain

UNITS = ("neuron", "edge")
PROVIDERS = ("auto", "cpu", "cuda")
GOALS = ("target_parameters", "target_bytes", "target_macs", "target_discrepancy")
MEMORY = 2**31  # bytes of one matrix of second moments


@dataclass(frozen=True)
class Options:
    """What is asked of `prune`; see there."""

    keep: float | str | None = None
    unit: str = "neuron"
    method: str = "dpp"
    kernel: str = "rbf"
    beta: float | None = None
    epsilon: float = 0.01
    refit: str = "affine"
    layers: tuple[tuple[str, float | None], ...] = ()
    skip: tuple[str, ...] = ()
    round_to: int = 1
    seed: int = 0
    provider: str = "auto"
    batch_size: int | None = None
    max_rows: int | None = None
    pattern: tuple[int, int] | None = None
    mask: str | None = None
    memory: int = MEMORY
    swaps: int = 0
    sensitivity: bool = False
    sweeps: int = 0
    polish: int = 0
    target_parameters: float | None = None
    target_bytes: int | None = None
    target_macs: float | None = None
    target_discrepancy: float | None = None
    allocation: str = "auto"
    apply: tuple[tuple[str, int, tuple[int, ...]], ...] | None = None
    storage: str = "dense"
    values: str = "same"

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, plain(getattr(self, name)))
        goals = [name for name in GOALS if getattr(self, name) is not None]
        if (self.keep is not None) + (self.pattern is not None) + (self.apply is not None) + len(goals) != 1:
            wishes = ", ".join(name.replace("_", "-") for name in GOALS)
            raise UsageError(
                f"Give one of these: keep; {wishes}; for edges, a pattern such as 2:4; for neurons, apply."
            )
        if self.apply is not None and self.unit != "neuron":
            raise UsageError("Only neurons can be applied again. Give a keep for edges.")
        if self.apply is not None and (
            self.swaps or self.round_to != 1 or any(keep is not None for _, keep in self.layers)
        ):
            raise UsageError(
                "The report says which neurons stay: apply goes with neither --swaps, --round-to nor a layer's keep."
            )
        if self.sweeps and (self.unit != "neuron" or self.refit == "none" or self.apply is not None):
            raise UsageError("Sweeps are for neurons that are chosen here, with a refit. Leave --sweeps out.")
        if self.polish and self.refit == "none":
            raise UsageError("Polishing goes on where a refit ends. Leave --polish or --refit none out.")
        if self.sensitivity and self.unit != "neuron":
            raise UsageError("Sensitivities weigh the choice of neurons. Leave --sensitivity out for edges.")
        if goals and self.refit == "none":
            raise UsageError("A target goes with a refit. Give a keep instead.")
        if self.unit == "edge" and self.target_macs is not None:
            raise UsageError(
                "Edges that are zero save no multiplications here. Take target_parameters, which counts the weights "
                "that stay, target_bytes or target_discrepancy."
            )
        if self.unit == "edge" and self.target_bytes is not None and self.storage == "dense":
            raise UsageError("Edges that are written as zeros save no bytes. Take another --storage than dense.")
        if self.allocation != "auto" and not goals:
            raise UsageError("An allocation spreads a target over layers. Give a target, or leave --allocation out.")
        if goals and (self.round_to != 1 or any(keep is not None for _, keep in self.layers)):
            raise UsageError("A target says how many stay: it goes with neither --round-to nor a layer's keep.")
        for name in goals:
            number = getattr(self, name)
            if not isinstance(number, int | float) or not math.isfinite(number) or number <= 0:
                raise UsageError(f"{name} is {number!r}; it must be a positive number.")
            if name in ("target_parameters", "target_macs") and number > 1:
                raise UsageError(f"{name} is {number}; it must be at most 1: the fraction that stays.")
        for name in ("keep", "beta", "epsilon"):
            number = getattr(self, name)
            missing = number is None and name == "epsilon"
            odd = number is not None and (isinstance(number, bool) or not isinstance(number, Real))
            if missing or (odd and (name, number) != ("keep", "auto")):
                raise UsageError(f"{name} is {number!r}; it must be a number.")
        if self.keep == "auto" and self.unit != "neuron":
            raise UsageError("The DPP's own size is that of a layer's neurons. Give a keep for edges.")
        if self.keep == "auto" and self.round_to != 1:
            raise UsageError("The DPP's own size goes without --round-to.")
        if isinstance(self.keep, Real):
            _check_keep(float(self.keep))
        if self.pattern is not None:
            self._check_pattern()
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it can be {', '.join(allowed)}.")
        for name, value in (("beta", self.beta), ("epsilon", self.epsilon)):
            if value is not None and not (math.isfinite(value) and value >= sys.float_info.min):
                raise UsageError(f"{name} is {value}; it must be a positive number.")
        for name in ("round_to", "batch_size", "max_rows", "seed", "memory", "swaps", "sweeps", "polish"):
            count = getattr(self, name)
            optional = name in ("batch_size", "max_rows")
            if not isinstance(count, Integral) and not (optional and count is None):
                raise UsageError(f"{name} is {count!r}; it must be a whole number.")
            least = 0 if name in ("swaps", "sweeps", "polish") else 1
            if count is not None and count < least and name != "seed":
                raise UsageError(f"{name} is {count}; it must be at least {least}.")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed is {self.seed}; it must be at least 0 and below 2^64.")
        check_storage(self.storage, self.values)

    def _check_pattern(self) -> None:
        if self.unit != "edge":
            raise UsageError("A pattern is for edges. Add --unit edge.")
        if self.method in METHODS and self.method not in PATTERNED:
            raise UsageError(f"A pattern cannot be kept by {self.method}. Take {', '.join(PATTERNED)}.")
        if self.round_to != 1 or any(keep is not None for _, keep in self.layers):
            raise UsageError("A pattern fixes how many edges stay: it goes with neither --round-to nor a layer's keep.")

    @property
    def has_goal(self) -> bool:
        """Whether a goal, not a keep, says how much stays."""
        return any(getattr(self, name) is not None for name in GOALS)

    def count(self, keep: float | None, n: int) -> int:
        """How many of the n neurons of a layer, or edges into an output, stay at this keep."""
        if self.pattern is not None:
            return sum(pattern_sizes(n, self.pattern))
        wish = self.keep if keep is None else keep
        if wish is None or isinstance(wish, str):
            return n  # until the goal, or the DPP, says
        return count_to_keep(wish, n, self.round_to)

    @property
    def rule(self) -> Rule:
        """How neurons or edges are chosen."""
        form = "affine" if self.refit == "none" else self.refit
        # A contest needs rows held out and a refit to judge; without, it is the DPP's mode.
        return Rule(
            "dpp" if self.method == "auto" else self.method,
            self.kernel,
            self.beta,
            self.epsilon,
            self.pattern,
            form,
            self.swaps,
        )


CHOICES: dict[str, Sequence[str]] = {
    "unit": UNITS,
    "method": ("auto", *METHODS),
    "kernel": KERNELS,
    "refit": FORMS,
    "provider": PROVIDERS,
    "allocation": ("auto", "measured", "uniform"),
}


def listed(patterns: str | Iterable[str]) -> list[str]:
    """One pattern, or several."""
    found = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
    for pattern in found:
        if not isinstance(pattern, str):
            raise UsageError(f"{pattern!r} is no pattern; layers, skip and methods are text, or several of it.")
    return found


def parse_layer(text: str) -> tuple[str, float | None]:
    """A pattern and its own keep, from ``PATTERN`` or ``PATTERN=KEEP``, split at the last ``=``.

    >>> parse_layer("fc*=0.5"), parse_layer("fc1")
    (('fc*', 0.5), ('fc1', None))
    """
    pattern, found, tail = text.rpartition("=")
    if not found:
        return text, None
    try:
        keep = float(tail)
    except ValueError:
        raise UsageError(
            f"The keep of layer pattern {pattern!r} is {tail!r}, not a number. "
            f"Write PATTERN=KEEP; for a name that holds '=', write {text + '=0.5'!r}."
        ) from None
    _check_keep(keep)
    return pattern, keep


def parse_report(report: Mapping[str, Any]) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
    """Name, width and kept neurons of each layer of an earlier report."""
    if report.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(f"The report to apply is a {report['schema']!r}, not the {SCHEMA!r} that is known here.")
    try:
        layers = [(part["name"], part["width"], part["keep"]) for part in report["layers"]]
        found = tuple((str(name), index(width), tuple(index(k) for k in keep)) for name, width, keep in layers)
    except (KeyError, TypeError, ValueError):
        raise UsageError("The report to apply is none of onnxdpp prune with --unit neuron.") from None
    for name, width, keep in found:
        if not keep or sorted(set(keep)) != list(keep) or keep[0] < 0 or keep[-1] >= width:
            raise UsageError(
                f"The report to apply keeps {len(keep)} neurons of {name!r} that cannot be: their numbers must rise, "
                f"each once, from 0 to at most {width - 1}."
            )
    if not found:
        raise UsageError("The report to apply has no layers.")
    if len({name for name, _, _ in found}) < len(found):
        raise UsageError("The report to apply has a layer twice.")
    return found


def parse_pattern(text: str) -> tuple[int, int]:
    """N and M of a pattern ``N:M``: N of every M consecutive inputs stay.

    >>> parse_pattern("2:4")
    (2, 4)
    """
    parts = text.split(":")
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        n, m = int(parts[0]), int(parts[1])
        if 1 <= n <= m:
            return n, m
    raise UsageError(f"The pattern {text!r} is not N:M with 1 <= N <= M, such as 2:4.")


def parse_bytes(text: str) -> int:
    """Bytes, from a number with or without a unit.

    >>> parse_bytes("2GiB"), parse_bytes("1.5e6"), parse_bytes("300 MB")
    (2147483648, 1500000, 300000000)
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not math.isfinite(number):
        raise UsageError(f"{text!r} is no number of bytes, such as 500MB or 2GiB.")
    base = 1024 if found[3] else 1000
    number *= base ** ("KMGT".index(found[2].upper()) + 1 if found[2] else 0)
    if 0 < number < 1:
        raise UsageError(f"{text!r} is less than one byte. Bytes are counted: 500MB, or 2GiB.")
    return int(number)


def check_storage(storage: str, values: str) -> None:
    """Refuse a way to store weights that there is not."""
    for name, value, allowed in (("storage", storage, STORAGES), ("values", values, VALUES)):
        if value not in allowed:
            raise UsageError(f"{name} is {value!r}; it can be {', '.join(allowed)}.")
    if storage == "dense" and values != "same":
        raise UsageError("Only packed weights have values of another type. Take --storage auto, or leave --values out.")
    if storage == "sparse" and values != "same":
        raise UsageError("A sparse initializer holds values of its own type. Take --storage packed, or no --values.")


def _check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise UsageError(f"keep is {keep}; it must be above 0 and at most 1: the fraction that stays.")


def count_to_keep(keep: float, n: int, round_to: int = 1) -> int:
    """How many of n stay: ``max(1, floor(keep n + 0.5))``, as a multiple of `round_to` where n allows.

    >>> count_to_keep(0.7, 500), count_to_keep(0.001, 500), count_to_keep(0.7, 500, 8), count_to_keep(0.7, 5, 8)
    (350, 1, 352, 5)
    """
    k = max(1, math.floor(keep * n + 0.5))
    if round_to > 1:
        k = max(1, math.floor(k / round_to + 0.5)) * round_to
    return min(k, n)

"""What a run did, as plain data and as JSON: no printing, no files.

The JSON Schemas beside this file (``schemas/report.json`` and others) say what the keys mean. Everything but
``seconds``, latency, load time and memory is the same for the same input, options and seed.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from numbers import Integral, Real
from typing import Any

SCHEMA = "onnxdpp/report/1"
INSPECTION_SCHEMA = "onnxdpp/inspection/1"
EVALUATION_SCHEMA = "onnxdpp/evaluation/1"
PACKING_SCHEMA = "onnxdpp/packing/1"
FORMS = {"dense": "dense", "packed": "bits and values", "gaps": "distances and values", "sparse": "sparse_initializer"}
"""How a weight can be stored, in words."""


@dataclass(frozen=True)
class ModelSize:
    """How large a model is.

    Attributes
    ----------
    sha256 : str
        Of the ``.onnx`` file (of the serialized proto where there is no file).
    bytes : int
        The same, and its data files.
    parameters, nonzero : int
        Entries of all float constants, and how many of them are not zero.
    macs : int or None
        Multiply-accumulates per row in Gemm, MatMul, Conv and ConvTranspose nodes of the main graph; None where not
        measured.
    """

    sha256: str
    bytes: int
    parameters: int
    nonzero: int
    macs: int | None


@dataclass(frozen=True)
class LayerResult:
    """What was done to one layer (unit neuron) or one projection (unit edge).

    Attributes
    ----------
    members : list of str
        Names of all producers, the layer's own first.
    width, kept : int
        Neurons of the layer; or, for edges, inputs of the projection and how many each output keeps.
    keep : list of int or None
        Indices of the neurons that stay, sorted; None for edges.
    loss_before_refit, loss : float or None
        Relative residual at the consumers; None where the original's outputs do not vary.
    loss_held_out : float or None
        The loss on rows that were not fitted (method auto).
    contest : list of dict or None
        All candidates, the best first: method, kernel, ridge, loss on rows held out (method auto).
    observed : {"inputs", "channels"}
        What the refit works with: each input of the consumers, or, where their moments would take too much memory,
        channels as wholes.
    observations : int
        Rows (positions of a convolution) that it was fitted on; of several values, the fewest.
    """

    name: str
    members: list[str]
    unit: str
    width: int
    kept: int
    keep: list[int] | None
    method: str
    kernel: str | None
    beta: float | None
    refit: str
    loss_before_refit: float | None
    loss: float | None
    loss_held_out: float | None
    contest: list[dict[str, Any]] | None
    observed: str
    observations: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """Everything about one run of `prune`."""

    before: ModelSize
    after: ModelSize
    layers: list[LayerResult]
    refusals: list[tuple[str, str]]
    discrepancy: dict[str, dict[str, float | None]]
    evaluation: dict[str, Any] | None
    provider: str
    seed: int
    rows: int
    random_data: bool
    notices: list[str]
    options: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    storage: dict[str, Any] | None = None
    gates: list[dict[str, Any]] = field(default_factory=list)
    rivals: list[dict[str, Any]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "schema": SCHEMA,
            "model": {"before": asdict(self.before), "after": asdict(self.after)},
            "layers": [asdict(layer) for layer in self.layers],
            "rivals": self.rivals,
            "refusals": [{"name": name, "reason": reason} for name, reason in self.refusals],
            "discrepancy": self.discrepancy,
            "evaluation": self.evaluation,
            "storage": self.storage,
            "gates": self.gates,
            "provider": self.provider,
            "seed": self.seed,
            "rows": self.rows,
            "random_data": self.random_data,
            "notices": self.notices,
            "options": self.options,
            "versions": self.versions,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class FoundLayer:
    """A hidden layer, or a projection, that can be pruned.

    Attributes
    ----------
    operator : str
        Of the (first) producer; for edges, of the projection.
    unit : {"neuron", "edge"}
    width : int
        Neurons; or, for edges, inputs of the projection.
    outputs : int
        Outputs of the consumers together; or, for edges, of the projection.
    producers, consumers : list of str
        Names of the producers and of the consumers (unit neuron).
    verdict : dict or None
        What the two tests found, where they were made.
    expected_size : float or None
        How many neurons a draw from the layer's own DPP has on average, where it was computed.
    """

    name: str
    operator: str
    unit: str
    width: int
    outputs: int
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    verdict: dict[str, Any] | None = None
    expected_size: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found in a model."""

    model: ModelSize
    opset: int
    producer: str
    layers: list[FoundLayer]
    refusals: list[tuple[str, str, str]]
    notices: list[str]
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON has them."""
        return {
            "schema": INSPECTION_SCHEMA,
            "model": asdict(self.model),
            "opset": self.opset,
            "producer": self.producer,
            "layers": [asdict(layer) for layer in self.layers],
            "refusals": [{"name": name, "unit": unit, "reason": reason} for name, unit, reason in self.refusals],
            "notices": self.notices,
            "versions": self.versions,
        }


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found of two models; see there, and `answers`, `accuracy`, `latency` and `footprint`."""

    before: ModelSize
    after: ModelSize
    gzip_bytes: tuple[int, int]
    discrepancy: dict[str, dict[str, float | None]]
    accuracy: dict[str, dict[str, Any]]
    latency: list[dict[str, Any]]
    memory: dict[str, dict[str, int]] | None
    threads: int
    provider: str
    rows: int
    random_data: bool
    notices: list[str]
    options: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    gates: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON has them."""
        sizes = zip((self.before, self.after), self.gzip_bytes, strict=True)
        before, after = ({**asdict(size), "gzip_bytes": packed} for size, packed in sizes)
        rest = {name: getattr(self, name) for name in list(Evaluation.__dataclass_fields__)[3:]}
        return {"schema": EVALUATION_SCHEMA, "model": {"before": before, "after": after}, **rest}


@dataclass(frozen=True)
class Packing:
    """What `pack` or `unpack` did to a file.

    Attributes
    ----------
    before, after : ModelSize
        The file as given and the file as written.
    opset : tuple of int
        Before and after.
    storage : dict
        How the weights are stored; of `unpack`, how they were.
    rows : int
        Random rows on which both gave the same, bit for bit; 0 where the model could not be run on such.
    """

    before: ModelSize
    after: ModelSize
    opset: tuple[int, int]
    storage: dict[str, Any]
    rows: int
    provider: str
    notices: list[str]
    options: dict[str, Any]
    versions: dict[str, str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON has them."""
        rest = {name: getattr(self, name) for name in list(Packing.__dataclass_fields__)[3:]}
        model = {"before": asdict(self.before), "after": asdict(self.after)}
        opset = {"before": self.opset[0], "after": self.opset[1]}
        return {"schema": PACKING_SCHEMA, "model": model, "opset": opset, **rest}


def shown_shape(shape: Iterable[int]) -> str:
    """A shape for people.

    >>> shown_shape((784, 500)), shown_shape((16, 1, 3, 3))
    ('784 × 500', '16 × 1 × 3 × 3')
    """
    return " × ".join(map(str, shape))


def to_json(data: dict[str, Any]) -> str:
    """Text of a report: two spaces, keys in the order of the schema, a newline at the end."""
    return json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A number (of NumPy, say) as one of Python's own, which JSON takes; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def printable(text: str, limit: int = 120) -> str:
    """`text` with everything unprintable escaped, cut after `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema ``report``, ``inspection``, ``evaluation``, ``comparison`` or ``packing``, parsed."""
    text = files("onnxdpp").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def worst(outputs: Iterable[Mapping[str, float | None]]) -> float | None:
    """How far the worst output lies apart.

    Parameters
    ----------
    outputs : iterable of mappings
        The ``discrepancy`` of each output, as reports have it.

    Returns
    -------
    float or None
        The largest relative L2; of outputs that are no floats, share of entries that differ. Infinite where an output
        has no such figure: it is zero in the original alone, or not finite in the other model alone. None of nothing.

    Examples
    --------
    >>> worst([{"relative_l2": 0.25, "agreement": 0.5}, {"agreement": 0.5}]), worst([{"relative_l2": None}]), worst([])
    (0.5, inf, None)
    """
    known = (part for part in outputs if part != {"agreement": None})  # as it once was told of outputs without entries
    figures = (part["relative_l2"] if "relative_l2" in part else _rest(part["agreement"]) for part in known)
    return max((math.inf if figure is None else figure for figure in figures), default=None)


def _rest(share: float | None) -> float | None:
    return None if share is None else 1 - share

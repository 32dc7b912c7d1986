"""Dense weights: every Gemm and MatMul with a constant one, or the reason why it cannot be touched.

A *projection* is one Gemm or MatMul with a constant weight: ``y = scale x W + factor bias``. Its weight can be
rewritten when nobody else reads it, and its bias, in the Gemm or in the Add or Sub behind, can hold an intercept.

What cannot be is a `Refusal`, a value with the reason, never an exception and never a guess.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxdpp.errors import ModelError
from onnxdpp.graph.index import ONNX_DOMAINS, Array, Graph, Use, attribute
from onnxdpp.graph.walking import nodes_below, quoted

Found = TypeVar("Found")
FLOATS = (np.float16, np.float32, np.float64)
SMALLEST_BETA = 1e-4
OLDEST_OPSET = 7  # before it, broadcasting was asked for by attributes


@dataclass(frozen=True)
class Refusal:
    """A place that could have been pruned but is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Bias:
    """The constant that an intercept goes into: ``y = scale x W + factor constant``."""

    use: Use
    factor: float


@dataclass(frozen=True)
class Projection:
    """One Gemm or MatMul with a constant weight, and where its input is observed.

    Attributes
    ----------
    name : str
    node : int
    tap : str
        The value that enters it, neurons along the last axis.
    weight : Use
    transposed : bool
        Whether the constant is stored (m, n) rather than (n, m).
    scale : float
        Gemm's alpha.
    n, m : int
        Inputs and outputs.
    bias : Bias or None
        None: no constant is added (yet) that could hold an intercept.
    """

    name: str
    node: int
    tap: str
    weight: Use
    transposed: bool
    scale: float
    n: int
    m: int
    bias: Bias | None

    def effective(self, stored: Array) -> NDArray[np.float64]:
        """The matrix that acts, (n, m) float64, from the constant as stored."""
        weights = np.asarray(stored, np.float64)
        return self.scale * (weights.T if self.transposed else weights)

    def stored(self, effective: NDArray[np.float64]) -> NDArray[np.float64]:
        """The constant to store, from the matrix that is to act."""
        weights = effective / self.scale
        return weights.T if self.transposed else weights


class Refused(Exception):
    """Ends the search of one layer; its message is the reason."""


def find_projections(graph: Graph) -> tuple[list[Projection], list[Refusal]]:
    """Every dense weight whose edges can be pruned, in topological order, and those that cannot.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    list of Projection, list of Refusal
        Names are unique among both.
    """
    return found_or_refused(graph, lambda index, name: projection_at(graph, index, name))


def found_or_refused(graph: Graph, build: Callable[[int, str], Found]) -> tuple[list[Found], list[Refusal]]:
    """What `build` makes of each dense node, by number and name, and a refusal where it raises `Refused`."""
    found: list[Found] = []
    refused = unknown_refusals(graph)
    for index, name in dense_nodes(graph).items():
        try:
            found.append(build(index, name))
        except Refused as reason:
            refused.append(Refusal(name, str(reason)))
    return found, refused


def projection_at(graph: Graph, index: int, name: str) -> Projection:
    """The dense node `index` as a Projection; raises `Refused` if its weight cannot be changed."""
    if graph.opset < OLDEST_OPSET:
        raise Refused(
            f"the model is of opset {graph.opset}; onnxdpp needs at least {OLDEST_OPSET} "
            "(onnx.version_converter can raise it)"
        )
    node = graph.nodes[index]
    weight = Use(index, 1)
    value = graph.name_at(weight)
    reason = graph.why_not_constant(value)
    if reason is not None:
        left = graph.why_not_constant(node.input[0]) is None
        raise Refused("its constant stands on the left" if left else f"its weight is not constant: {reason}")
    array = graph.array(value)
    if array is not None and 0 in array.shape:
        raise Refused(f"its weight {quoted(value)} is empty: {array.shape}")
    if array is None or array.ndim != 2 or array.dtype not in FLOATS:
        shown = "of an unknown kind" if array is None else f"{array.dtype} {array.shape}"
        raise Refused(f"its weight {quoted(value)} is {shown}, not a matrix of float16, float32 or float64")
    if (other := graph.shared_with(weight)) is not None:
        raise Refused(f"its weight {quoted(value)} is shared with {other}")
    gemm = node.op_type == "Gemm"
    if gemm and attribute(node, "transA", 0):
        raise Refused("its input is transposed (transA)")
    scale = float(attribute(node, "alpha", 1.0)) if gemm else 1.0
    if scale == 0 or not np.isfinite(scale):
        raise Refused(f"its alpha is {scale:g}")
    if gemm and not np.isfinite(beta := float(attribute(node, "beta", 1.0))):
        raise Refused(f"its beta is {beta:g}")
    if node.input[0] in graph.random_values:
        raise Refused(f"its input {quoted(node.input[0])} depends on a random operator")
    if bad := np.count_nonzero(~np.isfinite(array)):
        raise ModelError(
            f"The weight {quoted(value)} of {graph.title(index)} holds {bad} non-finite entries (NaN or infinity). "
            "Export the model again from sound weights."
        )
    transposed = gemm and bool(attribute(node, "transB", 0))
    n, m = array.shape[::-1] if transposed else array.shape
    bias = (_gemm_bias(graph, index, m) if gemm else None) or _added_bias(graph, index, m)
    return Projection(name, index, node.input[0], weight, transposed, scale, n, m, bias)


def _gemm_bias(graph: Graph, index: int, m: int) -> Bias | None:
    use = Use(index, 2)
    name, beta = graph.name_at(use), float(attribute(graph.nodes[index], "beta", 1.0))
    constant = graph.rewritable(name) if name else None
    # Behind an extreme beta the constant could not hold an intercept in its own type.
    usable = SMALLEST_BETA <= abs(beta) <= 1 / SMALLEST_BETA
    return Bias(use, beta) if usable and constant is not None and _holds_intercept(constant, m) else None


def _added_bias(graph: Graph, index: int, m: int) -> Bias | None:
    """The constant that an Add or Sub alone adds to the output of a MatMul, or of a Gemm without one of its own."""
    output = graph.nodes[index].output[0]
    uses = graph.uses.get(output, [])
    if len(uses) != 1 or output in graph.outputs or output in graph.captured:
        return None
    reader = graph.nodes[uses[0].node]
    if reader.op_type not in ("Add", "Sub") or reader.domain not in ONNX_DOMAINS:
        return None
    use = Use(uses[0].node, 1 - uses[0].slot)
    constant = graph.rewritable(graph.name_at(use))
    if constant is None or not _holds_intercept(constant, m):
        return None
    # (x W) - c and c - (x W) alike: what is added to x W is taken from c.
    return Bias(use, 1.0 if reader.op_type == "Add" else -1.0)


def _holds_intercept(constant: Array, m: int) -> bool:
    """Whether an intercept for m outputs may go into `constant`.

    One of another length breaks the model, which onnx.checker lets pass, and onnxruntime until it runs. Minus infinity
    masks an output.
    """
    return (not constant.ndim or constant.shape[-1] in (1, m)) and bool(np.isfinite(constant).all())


def _names(graph: Graph) -> list[str]:
    """A unique name for every node: its own, else a dense node's weight's, else its first output's."""
    wishes = []
    for node in graph.nodes:
        fallback = node.input[1] if _is_dense(node) else next(iter(node.output), node.op_type)
        wishes.append(node.name or fallback)
    taken, counts = set(wishes), dict[str, int]()
    names = []
    for wish in wishes:
        name, count = wish, counts.get(wish, 0) + 1
        while count > 1 and (name := f"{wish}#{count}") in taken:
            count += 1
        counts[wish] = count
        taken.add(name)
        names.append(name)
    return names


def _is_dense(node: NodeProto) -> bool:
    return node.op_type in ("Gemm", "MatMul") and node.domain in ONNX_DOMAINS


def dense_nodes(graph: Graph) -> dict[int, str]:
    """Number and name of every Gemm and MatMul, in topological order."""
    return {index: name for index, name in enumerate(_names(graph)) if _is_dense(graph.nodes[index])}


CONVOLUTIONS = ("Conv", "ConvTranspose")
RECURRENT = ("LSTM", "GRU", "RNN")
QUANTIZED = ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "QGemm", "DynamicQuantizeMatMul")


def unknown_refusals(graph: Graph) -> list[Refusal]:
    """Nodes with weights that onnxdpp does not prune (yet), each with its reason."""
    reasons = ((name, _why_unknown(graph, node)) for name, node in zip(_names(graph), graph.nodes, strict=True))
    return [Refusal(name, reason) for name, reason in reasons if reason is not None]


def _why_unknown(graph: Graph, node: NodeProto) -> str | None:
    if node.op_type in QUANTIZED:
        return f"{node.op_type} is quantized: prune before you quantize"
    if (node.domain, node.op_type) in graph.functions:
        return f"the model-local function {quoted(node.op_type)} is not looked into"
    if node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type in CONVOLUTIONS:
        return f"{node.op_type} is not supported yet"
    if node.op_type in RECURRENT:
        return f"{node.op_type} is recurrent: its gates share one weight"
    inner = [part.op_type for part in nodes_below([node])][1:]
    dense = sum(kind in ("Gemm", "MatMul", *CONVOLUTIONS, *RECURRENT) for kind in inner)
    if dense:
        return f"{dense} layers lie in the body of {node.op_type}, which is not looked into"
    return None

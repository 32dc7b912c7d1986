"""Weights: every Gemm, MatMul and convolution with a constant one, or the reason why it cannot be touched.

A *projection* is one Gemm or MatMul with a constant weight, ``y = scale x W + factor bias``, or a Conv or
ConvTranspose, which is the same for each patch of its input. Its weight can be rewritten when nobody else reads it, and
its bias, in the node itself or in the Add or Sub behind, can hold an intercept.

What cannot be is a `Refusal`, a value with the reason, never an exception and never a guess.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxdpp.errors import ModelError
from onnxdpp.graph.index import ONNX_DOMAINS, Array, Graph, Use, attribute
from onnxdpp.graph.patches import Patch, patch_of
from onnxdpp.graph.walking import nodes_below, quoted

Found = TypeVar("Found")
CONVOLUTIONS = ("Conv", "ConvTranspose")
WEIGHTED = ("Gemm", "MatMul", *CONVOLUTIONS)
QUANTIZERS = ("DequantizeLinear", "QuantizeLinear")
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
    """One Gemm, MatMul, Conv or ConvTranspose with a constant weight, and where its input is observed.

    Attributes
    ----------
    name : str
    node : int
    tap : str
        The value that enters it.
    weight : Use
    transposed : bool
        Whether the constant of a Gemm is stored (m, n) rather than (n, m).
    scale : float
        Gemm's alpha.
    n, m : int
        Inputs and outputs: of a convolution, the entries of a patch (within a group), and the channels.
    bias : Bias or None
        None: no constant is added (yet) that could hold an intercept.
    patch : Patch or None
        Of a convolution.
    groups : int
        Output j reads the inputs of group j // (m / groups) only.
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
    patch: Patch | None = None
    groups: int = 1

    @property
    def axis(self) -> int:
        """The axis of inputs and outputs in the values around it, counted from the end."""
        return -1 if self.patch is None else -1 - len(self.patch.kernel)

    @property
    def block(self) -> int:
        """Inputs that belong to one entry of its input along `axis`."""
        return 1 if self.patch is None else self.patch.size

    @property
    def input_axis(self) -> int:
        """The axis of the constant along which inputs (of a convolution: channels) lie."""
        if self.patch is None:
            return int(self.transposed)
        return int(self.patch.stuffing is None)

    @property
    def output_axis(self) -> int:
        """The axis of the constant along which outputs lie."""
        return 1 - self.input_axis

    def group(self, number: int) -> slice:
        """The outputs of one group."""
        return slice(number * self.m // self.groups, (number + 1) * self.m // self.groups)

    def effective(self, stored: Array) -> NDArray[np.float64]:
        """The matrix that acts, (n, m) float64, from the constant as stored.

        Column j acts on the inputs of its group.
        """
        weights = np.asarray(stored, np.float64)
        if self.patch is None:
            return self.scale * (weights.T if self.transposed else weights)
        if self.patch.stuffing is None:
            return weights.reshape(self.m, self.n).T
        spatial = tuple(range(2, weights.ndim))
        split = np.flip(weights, spatial).reshape(self.groups, -1, self.m // self.groups, self.block)
        return split.transpose(1, 3, 0, 2).reshape(self.n, self.m)

    def stored(self, effective: NDArray[np.float64]) -> NDArray[np.float64]:
        """The constant to store, from the matrix that is to act."""
        return self.laid_out(effective / self.scale + 0.0)  # a masked weight behind a negative alpha is no -0.0

    def laid_out(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """An (n, m) array in the layout of the constant."""
        if self.patch is None:
            return matrix.T if self.transposed else matrix
        if self.patch.stuffing is None:
            return matrix.T.reshape(self.m, -1, *self.patch.kernel)
        width = self.m // self.groups
        split = matrix.reshape(-1, self.block, self.groups, width).transpose(2, 0, 3, 1)
        whole = split.reshape(-1, width, *self.patch.kernel)
        return np.flip(whole, tuple(range(2, whole.ndim)))


class Refused(Exception):
    """Ends the search of one layer; its message is the reason."""


def find_projections(graph: Graph) -> tuple[list[Projection], list[Refusal]]:
    """Every weight whose edges can be pruned, in topological order, and those that cannot.

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
    """What `build` makes of each node with a weight, by number and name, and a refusal where it raises `Refused`."""
    found: list[Found] = []
    refused = unknown_refusals(graph)
    for index, name in weighted_nodes(graph).items():
        try:
            found.append(build(index, name))
        except Refused as reason:
            refused.append(Refusal(name, str(reason)))
    return found, refused


def projection_at(graph: Graph, index: int, name: str) -> Projection:
    """The node `index` as a Projection; raises `Refused` if its weight cannot be changed."""
    if graph.opset < OLDEST_OPSET:
        raise Refused(
            f"the model is of opset {graph.opset}; onnxdpp needs at least {OLDEST_OPSET} "
            "(onnx.version_converter can raise it)"
        )
    node = graph.nodes[index]
    weight, array = _weight(graph, index)
    if node.op_type in CONVOLUTIONS:
        return _convolution(graph, index, name, weight, array)
    if array.ndim != 2:
        raise Refused(f"its weight {quoted(graph.name_at(weight))} is {array.dtype} {array.shape}, not a matrix")
    gemm = node.op_type == "Gemm"
    if gemm and attribute(node, "transA", 0):
        raise Refused("its input is transposed (transA)")
    scale = float(attribute(node, "alpha", 1.0)) if gemm else 1.0
    if scale == 0 or not np.isfinite(scale):
        raise Refused(f"its alpha is {scale:g}")
    if gemm and not np.isfinite(beta := float(attribute(node, "beta", 1.0))):
        raise Refused(f"its beta is {beta:g}")
    transposed = gemm and bool(attribute(node, "transB", 0))
    n, m = array.shape[::-1] if transposed else array.shape
    bias = (_own_bias(graph, index, m) if gemm else None) or _added_bias(graph, index, m)
    return Projection(name, index, node.input[0], weight, transposed, scale, n, m, bias)


def _weight(graph: Graph, index: int) -> tuple[Use, Array]:
    """Where the weight of node `index` is rewritten, and the weight as it stands there; raises `Refused`."""
    node = graph.nodes[index]
    weight = Use(index, 1)
    value = graph.name_at(weight)
    reason = graph.why_not_constant(value)
    if reason is not None:
        if graph.why_not_constant(node.input[0]) is None:
            raise Refused("its constant stands on the left")
        if node.op_type == "MatMul" and value in graph.producer and graph.tensor(value) is None:
            made = graph.nodes[graph.producer[value]]
            if made.op_type not in QUANTIZERS:
                raise Refused(
                    "it multiplies two computed values, as attention does; heads and their dimensions are not pruned"
                )
        raise Refused(f"its weight is not constant: {reason}")
    array = graph.array(value)
    if array is not None and 0 in array.shape:
        raise Refused(f"its weight {quoted(value)} is empty: {array.shape}")
    if array is None or array.dtype not in FLOATS:
        shown = "of an unknown kind" if array is None else f"{array.dtype} {array.shape}"
        raise Refused(f"its weight {quoted(value)} is {shown}, not an array of float16, float32 or float64")
    if (half := _bfloat16_below(graph, value)) is not None:
        raise Refused(f"its weight {quoted(value)} is made of {quoted(half)}, which is bfloat16")
    if (other := graph.shared_with(weight)) is not None:
        raise Refused(f"its weight {quoted(value)} is shared with {other}")
    if node.input[0] in graph.random_values:
        raise Refused(f"its input {quoted(node.input[0])} depends on a random operator")
    if bad := np.count_nonzero(~np.isfinite(array)):
        raise ModelError(
            f"The weight {quoted(value)} of {graph.title(index)} holds {bad} non-finite entries (NaN or infinity). "
            "Export the model again from sound weights."
        )
    return graph.source(weight), array


def _bfloat16_below(graph: Graph, name: str) -> str | None:
    """The constant of bfloat16 that Casts make `name` of, if there is one."""
    while (node := graph.folding_node(name)) is not None:
        name = node.input[0]
        array = graph.array(name)
        if array is not None and array.dtype.name == "bfloat16":
            return name
    return None


def _convolution(graph: Graph, index: int, name: str, weight: Use, array: Array) -> Projection:
    node = graph.nodes[index]
    if array.ndim < 3:
        raise Refused(f"its weight {quoted(graph.name_at(weight))} is {array.dtype} {array.shape}, not a kernel")
    patch = patch_of(node, array.shape)
    if isinstance(patch, str):
        raise Refused(patch)
    groups = int(attribute(node, "group", 1))
    if groups < 1 or array.shape[0] % groups:
        raise Refused(f"its group is {groups}, its weight {array.shape}")
    bias = _own_bias(graph, index, 0)
    if bias is None and (added := graph.name_at(Use(index, 2))):
        raise Refused(f"its bias cannot hold an intercept: {graph.why_not_constant(added) or 'it is not finite'}")
    if patch.stuffing is None:
        n, m = array.shape[1], array.shape[0]
    else:
        n, m = array.shape[0] // groups, array.shape[1] * groups
    return Projection(name, index, node.input[0], weight, False, 1.0, n * patch.size, m, bias, patch, groups)


def _own_bias(graph: Graph, index: int, m: int) -> Bias | None:
    """The third input of a Gemm or, with m = 0, of a convolution."""
    use = Use(index, 2)
    name, beta = graph.name_at(use), float(attribute(graph.nodes[index], "beta", 1.0))
    constant = graph.rewritable(name) if name else None
    # Behind an extreme beta the constant could not hold an intercept in its own type.
    usable = SMALLEST_BETA <= abs(beta) <= 1 / SMALLEST_BETA
    if not usable or constant is None or not _holds_intercept(constant, m or constant.size):
        return None
    return Bias(graph.source(use), beta)


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
    return Bias(graph.source(use), 1.0 if reader.op_type == "Add" else -1.0)


def _holds_intercept(constant: Array, m: int) -> bool:
    """Whether an intercept for m outputs may go into `constant`.

    One of another length breaks the model, which onnx.checker lets pass, and onnxruntime until it runs. Minus infinity
    masks an output.
    """
    return (not constant.ndim or constant.shape[-1] in (1, m)) and bool(np.isfinite(constant).all())


def _names(graph: Graph) -> list[str]:
    """A unique name for every node: its own, else the weight's of one that has one, else its first output's."""
    wishes = []
    for node in graph.nodes:
        fallback = node.input[1] if _is_weighted(node) else next(iter(node.output), node.op_type)
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


def _is_weighted(node: NodeProto) -> bool:
    return node.op_type in WEIGHTED and node.domain in ONNX_DOMAINS


def weighted_nodes(graph: Graph) -> dict[int, str]:
    """Number and name of every Gemm, MatMul and convolution, in topological order."""
    return {index: name for index, name in enumerate(_names(graph)) if _is_weighted(graph.nodes[index])}


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
    if node.op_type in RECURRENT:
        return f"{node.op_type} is recurrent: its gates share one weight"
    inner = [part.op_type for part in nodes_below([node])][1:]
    dense = sum(kind in (*WEIGHTED, *RECURRENT) for kind in inner)
    if dense:
        return f"{dense} layers lie in the body of {node.op_type}, which is not looked into"
    return None

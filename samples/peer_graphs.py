"""Small graphs for peers.py: one for each thing that exporters write between two layers.

Weights are drawn (standard normal over the root of what a neuron sums), and so are the calibration rows: what is looked
at is which tool takes hold of what, and how far the outputs move. Every hidden layer has 16 neurons or channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import numpy as np
from onnx import ModelProto, helper, numpy_helper, parser

ROWS = 512
H = 16


@dataclass(frozen=True)
class Small:
    """A graph: a name, its text, the shapes of its weights, and of a calibration row.

    Attributes
    ----------
    change : callable, optional
        What is done to the model in the end.
    """

    name: str
    text: str
    weights: dict[str, tuple[int, ...]]
    row: tuple[int, ...] = (8,)
    dtype: type = np.float32
    opset: int = 17
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    change: Callable[[ModelProto], None] = lambda model: None

    def model(self) -> ModelProto:
        """The graph, with its weights."""
        kind = {np.float32: "float", np.float16: "float16"}[self.dtype]
        head = f"g ({kind}[{', '.join(['N', *map(str, self.row)])}] x) => "
        domains = f'["": {self.opset}, "com.microsoft": 1]'
        model = parser.parse_model(f"<ir_version: 8, opset_import: {domains}> {head}{self.text}")
        rng = np.random.default_rng(0)
        for name, shape in self.weights.items():
            array = rng.standard_normal(shape) / np.sqrt(_summed(shape))
            if name == "variance":
                array = array**2 + 0.5
            model.graph.initializer.append(numpy_helper.from_array(array.astype(self.dtype), name))
        for name, array in self.constants.items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        self.change(model)
        return model

    def rows(self) -> np.ndarray:
        """Calibration rows, (ROWS, *row)."""
        return np.random.default_rng(1).standard_normal((ROWS, *self.row)).astype(self.dtype)


def _summed(shape: tuple[int, ...]) -> int:
    """Over how many inputs a neuron of such a weight sums."""
    return shape[0] if len(shape) == 2 else prod(shape[1:]) if len(shape) > 2 else 1


def _into_nodes(model: ModelProto) -> None:
    """Initializers become Constant nodes."""
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    others = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend([*nodes, *others])


TWO = {"w1": (8, H), "b1": (H,), "w2": (H, 5), "b2": (5,)}
LAST = "y = Gemm(a, w2, b2) }"
FIRST = "{ h = Gemm(x, w1, b1)"
OUT = "(float[N, 5] y)"
NORM = {"scale": (H,), "shift": (H,), "mean": (H,), "variance": (H,)}
IMAGE = (3, 8, 8)
CONV = {"w1": (H, 3, 3, 3), "b1": (H,)}


def _between(name: str, middle: str, weights: dict[str, tuple[int, ...]] | None = None, **rest: object) -> Small:
    """Gemm, something, Gemm."""
    return Small(name, f"{OUT} {FIRST} {middle} {LAST}", {**TWO, **(weights or {})}, **rest)  # type: ignore[arg-type]


GRAPHS = (
    _between("Gemm, Sigmoid, Gemm", "a = Sigmoid(h)"),
    Small(
        "Gemm, Sigmoid, Gemm, Sigmoid, Gemm",
        f"{OUT} {FIRST} p = Sigmoid(h) q = Gemm(p, w3, b3) a = Sigmoid(q) {LAST}",
        {**TWO, "w3": (H, H), "b3": (H,)},
    ),
    Small(
        "MatMul, Add, Relu, MatMul, Add on (N, 6, 8)",
        "(float[N, 6, 5] y) { p = MatMul(x, w1) h = Add(p, b1) a = Relu(h) q = MatMul(a, w2) y = Add(q, b2) }",
        TWO,
        row=(6, 8),
    ),
    _between("Gemm, Clip, Gemm", "a = Clip(h, low, high)", constants={"low": np.float32(-1), "high": np.float32(1)}),
    Small(
        "residual: h + Gemm(Relu(h))",
        f"{OUT} {FIRST} p = Relu(h) q = Gemm(p, w3, b3) s = Add(p, q) a = Relu(s) {LAST}",
        {**TWO, "w3": (H, H), "b3": (H,)},
    ),
    Small(
        "gate: Gemm x Sigmoid(Gemm)",
        f"{OUT} {FIRST} p = Gemm(x, w3, b3) g = Sigmoid(p) a = Mul(h, g) {LAST}",
        {**TWO, "w3": (8, H), "b3": (H,)},
    ),
    Small(
        "two Gemms read one hidden value",
        f"(float[N, 5] y, float[N, 3] z) {FIRST} a = Relu(h) y = Gemm(a, w2, b2) z = Gemm(a, w3, b3) }}",
        {**TWO, "w3": (H, 3), "b3": (3,)},
    ),
    Small("the hidden value is an output too", f"(float[N, 5] y, float[N, {H}] a) {FIRST} a = Relu(h) {LAST}", TWO),
    Small(
        "Gemm with alpha 0.5",
        f"{OUT} {{ h = Gemm <alpha = 0.5> (x, w1, b1) a = Relu(h) {LAST}",
        TWO,
    ),
    _between("Gemm, Softmax, Gemm", "a = Softmax <axis = -1> (h)"),
    _between(
        "Gemm, LayerNormalization, Gemm",
        "a = LayerNormalization <axis = -1> (h, scale, shift)",
        {"scale": (H,), "shift": (H,)},
    ),
    _between(
        "Gemm, BatchNormalization, Relu, Gemm",
        "n = BatchNormalization(h, scale, shift, mean, variance) a = Relu(n)",
        NORM,
    ),
    _between("Gemm, Relu, Dropout, Gemm", "r = Relu(h) a = Dropout(r)"),
    _between("Gemm, Relu, Flatten, Gemm", "r = Relu(h) a = Flatten(r)"),
    _between("Gemm, Relu, Reshape, Gemm", "r = Relu(h) a = Reshape(r, to)", constants={"to": np.array([0, -1])}),
    Small(
        "Conv, Relu, MaxPool, Flatten, Gemm",
        f"{OUT} {{ h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu(h) "
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) a = Flatten(p) " + LAST,
        {**CONV, "w2": (16 * H, 5), "b2": (5,)},
        row=IMAGE,
    ),
    Small(
        "Conv, Relu, Conv, GlobalAveragePool, Flatten, Gemm",
        f"{OUT} {{ h = Conv(x, w1, b1) r = Relu(h) c = Conv(r, w3, b3) s = Relu(c) "
        "p = GlobalAveragePool(s) a = Flatten(p) " + LAST,
        {**CONV, "w3": (H, H, 3, 3), "b3": (H,), "w2": (H, 5), "b2": (5,)},
        row=IMAGE,
    ),
    Small(
        "Conv, BatchNormalization, Relu, Conv",
        "(float[N, 4, 4, 4] y) { h = Conv(x, w1, b1) n = BatchNormalization(h, scale, shift, mean, variance) "
        "r = Relu(n) y = Conv(r, w2, b2) }",
        {**CONV, **NORM, "w2": (4, H, 3, 3), "b2": (4,)},
        row=IMAGE,
    ),
    Small(
        "Conv, Relu, NHWC Transpose, MatMul",
        "(float[N, 6, 6, 5] y) { h = Conv(x, w1, b1) r = Relu(h) a = Transpose <perm = [0, 2, 3, 1]> (r) "
        "y = MatMul(a, w2) }",
        {**CONV, "w2": (H, 5)},
        row=IMAGE,
    ),
    Small(
        "Gemm, Sigmoid, Gemm in float16",
        f"(float16[N, 5] y) {FIRST} a = Sigmoid(h) {LAST}",
        TWO,
        dtype=np.float16,
    ),
    _between("weights in Constant nodes", "a = Relu(h)", change=_into_nodes),
    Small(
        "one weight for two Gemms",
        f"{OUT} {FIRST} p = Relu(h) q = Gemm(p, w3, b4) r = Relu(q) s = Gemm(r, w3, b3) a = Relu(s) {LAST}",
        {**TWO, "w3": (H, H), "b3": (H,), "b4": (H,)},
    ),
    Small(
        "MultiHeadAttention of 4 heads",
        "(float[N, 6, 8] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
        "a = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v) y = MatMul(a, w2) }",
        {"wq": (8, H), "wk": (8, H), "wv": (8, H), "w2": (H, 8)},
        row=(6, 8),
    ),
)
"""In the order of the table."""


def mlp(*sizes: int) -> Small:
    """A sigmoid network of dense layers."""
    text, value, weights = "{", "x", {}
    for layer, (n, m) in enumerate(pairwise(sizes), 1):
        last = layer == len(sizes) - 1
        text += f" {'y' if last else f'h{layer}'} = Gemm({value}, w{layer}, b{layer})"
        text += "" if last else f" a{layer} = Sigmoid(h{layer})"
        value = f"a{layer}"
        weights |= {f"w{layer}": (n, m), f"b{layer}": (m,)}
    name = "-".join(map(str, sizes))
    return Small(name, f"(float[N, {sizes[-1]}] y) {text} }}", weights, row=(sizes[0],))

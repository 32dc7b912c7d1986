"""The operator table: each entry between two projections, judged by both oracles, in every opset that changed it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnx
import pytest
from models import Array, Weight, graph_of, model, normal, run
from onnx import ModelProto
from oracles import assert_sound

from onnxdpp.graph import joins, moves, norms, operators
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer, find_layers
from onnxdpp.graph.operators import OPERATORS

KINDS: dict[str, tuple[str, str, str, dict[str, Weight], tuple[int, ...]]] = {
    "dense": ("N, 4", "MatMul(x, W1)", "MatMul(h, W2)", {"W1": (4, 5), "W2": (5, 3)}, (9, 4)),
    "sequence": ("N, 3, 4", "MatMul(x, W1)", "MatMul(h, W2)", {"W1": (4, 5), "W2": (5, 3)}, (4, 3, 4)),
    "image": (
        "N, 2, 6, 6",
        "Conv <pads = [1, 1, 1, 1]> (x, W1, b1)",
        "Conv(h, W2)",
        {"W1": (6, 2, 3, 3), "b1": (6,), "W2": (3, 6, 1, 1)},
        (2, 2, 6, 6),
    ),
    "tail": (
        "N, 2, 6, 6",
        "Conv <pads = [1, 1, 1, 1]> (x, W1, b1)",
        "MatMul(h, W2)",
        {"W1": (6, 2, 3, 3), "b1": (6,), "W2": (6, 3)},
        (2, 2, 6, 6),
    ),
}
"""Kind -> shape of x, how a comes of it, how y comes of h, weights, shape of the rows."""


def between(kind: str, body: str, opset: int = 17, **weights: Weight) -> ModelProto:
    """A projection fc1, `body` from value a to value h, a projection fc2."""
    shape, first, second, own, _ = KINDS[kind]
    proto = model(
        f"g (float[{shape}] x) => (float y) {{ [fc1] a = {first}   {body}   [fc2] y = {second} }}",
        opset=opset,
        **{**own, **weights},
    )
    # An output needs a shape, of the right rank.
    value = proto.graph.output[0]
    value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto).graph.output[0].type.tensor_type.shape
    for _ in inferred.dim or KINDS[kind][-1][: 2 if kind == "tail" else None]:
        value.type.tensor_type.shape.dim.add()
    return proto


def rows(kind: str) -> dict[str, Array]:
    return {"x": normal(*KINDS[kind][-1])}


@dataclass(frozen=True)
class Case:
    """One way to use an operator; `reason`: why it is refused; `opsets`: first and last."""

    operator: str
    kind: str
    body: str
    weights: dict[str, Weight] = field(default_factory=dict)
    opsets: tuple[int, int] = (7, 99)
    n: int | None = None
    reason: str | None = None


@cache
def newest() -> int:
    """The newest opset that onnx knows and onnxruntime runs."""
    for opset in range(onnx.defs.onnx_opset_version(), 6, -1):
        try:
            run(between("dense", "h = Relu(a)", opset), rows("dense"))
        except Exception:
            continue
        return opset
    raise AssertionError("onnxruntime runs nothing")


@cache
def versions() -> dict[str, list[int]]:
    """Operator -> opsets that changed more of it than the types that it takes."""
    schemas: dict[str, dict[int, onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in OPERATORS:
            schemas.setdefault(schema.name, {})[schema.since_version] = schema
    found: dict[str, list[int]] = {}
    for name, history in schemas.items():
        before = None
        for version in sorted(history):
            schema = history[version]
            defaults = {key: part.default_value.SerializeToString() for key, part in schema.attributes.items()}
            signature = defaults, [part.name for part in schema.inputs], len(schema.outputs)
            if signature != before:
                found.setdefault(name, []).append(version)
            before = signature
    return found


def opsets(case: Case) -> list[int]:
    """The first and the last of a case, and all that changed its operator in between."""
    changes = versions()[case.operator]
    low, high = max(case.opsets[0], changes[0]), min(case.opsets[1], newest())
    return sorted({low, *(version for version in changes if low < version <= high), high})


# Elementwise

INTEGERS = "f = Mul(a, ten)   i = Cast <to = 6> (f)"
BOOLEANS = "p = Greater(a, zero)   q = Less(a, c)"
C5 = normal(5, seed=5)
C5I = np.array([1, 2, 3, 5, 7], np.int32)
ZERO, ONE, TEN = np.float32(0), np.float32(1), np.float32(10)


def elementwise_cases() -> Iterator[Case]:
    for name in """Abs Asinh Atan Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
            LeakyRelu Mish Neg Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Swish Tanh
            ThresholdedRelu""".split():
        yield Case(name, "dense", f"h = {name}(a)")
        yield Case(name, "image", f"h = {name}(a)", opsets=(16, 99))
    for name in "Acos Asin Atanh Log Reciprocal Sqrt Tan".split():
        yield Case(name, "dense", f"s = Sigmoid(a)   h = {name}(s)")
    for name in "Add Div Mul PRelu Sub".split():
        yield Case(name, "dense", f"h = {name}(a, c)", {"c": C5})
        yield Case(name, "image", f"h = {name}(a, c)", {"c": (6, 1, 1)})
    for name in "Max Mean Min Sum".split():
        yield Case(name, "dense", f"h = {name}(a, c, a)", {"c": C5}, (8, 99))
        yield Case(name, "dense", f"s = Sigmoid(a)   h = {name}(s, a)")
    for name in "BitwiseAnd BitwiseOr BitwiseXor".split():
        yield Case(name, "dense", f"{INTEGERS}   j = {name}(i, c)   h = Cast <to = 1> (j)", {"c": C5I, "ten": TEN})
    for name in "And Or Xor".split():
        body = f"{BOOLEANS}   r = {name}(p, q)   h = Cast <to = 1> (r)"
        yield Case(name, "dense", body, {"c": C5 + 1, "zero": ZERO})
    for name in "Greater GreaterOrEqual Less LessOrEqual".split():
        yield Case(name, "dense", f"r = {name}(a, c)   h = Cast <to = 1> (r)", {"c": C5})
    shift = (
        """f = Mul(a, a)   i = Cast <to = 12> (f)   j = BitShift <direction = "LEFT"> (i, c)   h = Cast <to = 1> (j)"""
    )
    equal = "i = Floor(a)   r = Equal(i, c)   h = Cast <to = 1> (r)"
    yield Case("Acosh", "dense", "s = Exp(a)   t = Add(s, one)   h = Acosh(t)", {"one": ONE})
    yield Case("BitShift", "dense", shift, {"c": C5I.astype(np.uint32)})
    yield Case("BitwiseNot", "dense", f"{INTEGERS}   j = BitwiseNot(i)   h = Cast <to = 1> (j)", {"ten": TEN})
    yield Case("Cast", "dense", "i = Cast <to = 7> (a)   h = Cast <to = 1> (i)")
    yield Case("CastLike", "dense", "i = CastLike(a, like)   h = Cast <to = 1> (i)", {"like": np.int32(0)})
    yield Case("CastLike", "dense", "k = CastLike(c, a)   h = Add(a, k)", {"c": np.int32(2)})
    yield Case("Clip", "dense", "h = Clip <min = -0.5, max = 1.0> (a)", opsets=(7, 10))
    yield Case("Clip", "dense", "h = Clip(a, low, high)", {"low": np.float32(-0.5), "high": ONE}, (11, 99))
    yield Case("Dropout", "dense", "h = Dropout <ratio = 0.9> (a)", opsets=(7, 11))
    inference = {"ratio": np.float32(0.9), "train": np.bool_(False)}
    training = {"ratio": np.float32(0.9), "train": np.bool_(True)}
    yield Case("Dropout", "dense", "h = Dropout(a, ratio, train)", inference, (12, 99))
    yield Case(
        "Dropout",
        "dense",
        "h = Dropout(a, ratio, train)",
        training,
        (12, 99),
        reason="may drop at random (training mode)",
    )
    yield Case("Equal", "dense", equal, {"c": np.float32([0, 1, -1, 0, -2])}, (11, 99))
    yield Case("IsInf", "dense", "s = Relu(a)   l = Log(s)   r = IsInf(l)   h = Cast <to = 1> (r)")
    yield Case("IsNaN", "dense", "s = Sqrt(a)   r = IsNaN(s)   h = Cast <to = 1> (r)")
    yield Case("Mod", "dense", "h = Mod <fmod = 1> (a, c)", {"c": C5})
    yield Case("Not", "dense", "p = Greater(a, zero)   r = Not(p)   h = Cast <to = 1> (r)", {"zero": ZERO})
    yield Case("Pow", "dense", "s = Sigmoid(a)   h = Pow(s, c)", {"c": C5})
    yield Case("PRelu", "image", "h = PRelu(a, slope)", {"slope": (1, 1)})
    yield Case("PRelu", "sequence", "h = PRelu(a, slope)", {"slope": (3, 5)})
    yield Case("Shrink", "dense", "h = Shrink <lambd = 0.5, bias = 0.1> (a)")
    yield Case("Where", "dense", "p = Greater(a, zero)   h = Where(p, a, c)", {"c": C5, "zero": ZERO})


# Normalizations

ACROSS = "t = Transpose <perm = [0, 2, 1]> (a)   {body}   h = Transpose <perm = [0, 2, 1]> (u)"
"""Of a sequence: `body` from t to u has the neurons on axis 1."""
MIXES = "mixes neurons"


def statistics(n: int) -> dict[str, Weight]:
    return {"scale": (n,), "bias": (n,), "mean": (n,), "variance": np.abs(normal(n, seed=7)) + 0.5}


def norm_cases() -> Iterator[Case]:
    batch = "h = BatchNormalization(a, scale, bias, mean, variance)"
    yield Case("BatchNormalization", "image", batch, statistics(6))
    yield Case("BatchNormalization", "dense", batch, statistics(5))
    yield Case("BatchNormalization", "sequence", batch, statistics(3))
    trained = "h, m, v = BatchNormalization <training_mode = 1> (a, scale, bias, mean, variance)"
    yield Case(
        "BatchNormalization",
        "image",
        trained,
        statistics(6),
        (14, 99),
        reason="normalizes by the batch (training mode)",
    )
    instance = "h = InstanceNormalization(a, scale, bias)"
    yield Case("InstanceNormalization", "image", instance, {"scale": (6,), "bias": (6,)})
    yield Case("InstanceNormalization", "sequence", instance, {"scale": (3,), "bias": (3,)}, reason=MIXES)
    group = "h = GroupNormalization <num_groups = 3> (a, scale, bias)"
    yield Case("GroupNormalization", "image", group, {"scale": (6,), "bias": (6,)}, (21, 99), n=3)
    yield Case("GroupNormalization", "sequence", group, {"scale": (3,), "bias": (3,)}, (21, 99), reason=MIXES)
    for name, extra in (("LayerNormalization", ", bias"), ("RMSNormalization", "")):
        weights: dict[str, Weight] = {"scale": (3,), "bias": (3,)} if extra else {"scale": (3,)}
        own: dict[str, Weight] = {"scale": (5,), "bias": (5,)} if extra else {"scale": (5,)}
        yield Case(name, "sequence", ACROSS.format(body=f"u = {name}(t, scale{extra})"), weights)
        yield Case(name, "sequence", ACROSS.format(body=f"u = {name} <axis = 2> (t, scale)"), {"scale": (3,)})
        yield Case(name, "sequence", f"h = {name}(a, scale{extra})", own, reason=MIXES)
        yield Case(name, "sequence", f"h = {name} <axis = 1> (a, scale)", {"scale": (3, 5)}, reason=MIXES)
    for name in "Softmax LogSoftmax Hardmax".split():
        yield Case(name, "sequence", ACROSS.format(body=f"u = {name} <axis = 2> (t)"))
        yield Case(name, "sequence", ACROSS.format(body=f"u = {name} <axis = -1> (t)"), opsets=(11, 99))
        yield Case(name, "sequence", ACROSS.format(body=f"u = {name}(t)"), opsets=(13, 99))
        yield Case(name, "sequence", ACROSS.format(body=f"u = {name}(t)"), opsets=(7, 12), reason=MIXES)
        yield Case(name, "sequence", f"h = {name} <axis = 1> (a)", opsets=(13, 99))
        yield Case(name, "sequence", f"h = {name} <axis = 1> (a)", opsets=(7, 12), reason=MIXES)
        yield Case(name, "dense", f"h = {name}(a)", reason=MIXES)
    yield Case("LpNormalization", "sequence", "h = LpNormalization <axis = 1> (a)")
    yield Case("LpNormalization", "sequence", "h = LpNormalization(a)", reason=MIXES)
    for name in operators.POOLING:
        attributes = (
            "" if name.startswith("Global") else "<kernel_shape = [2, 3], strides = [2, 1], pads = [0, 1, 0, 1]>"
        )
        yield Case(name, "image", f"h = {name} {attributes} (a)")
        one = "" if name.startswith("Global") else "<kernel_shape = [2]>"
        yield Case(
            name, "sequence", f"h = {name} {one} (a)", {"W2": (1 if name.startswith("Global") else 4, 3)}, reason=MIXES
        )
    yield Case("MaxPool", "image", "h, i = MaxPool <kernel_shape = [2, 2]> (a)", opsets=(8, 99))


# Reductions, running sums, picking along one axis

ONE_AXIS = np.int64([1])


def axis_cases() -> Iterator[Case]:
    for name in operators.REDUCING:
        inner = "s = Sigmoid(a)   h" if "Log" in name else "h"
        # The axes became an input in opset 18, of ReduceSum in opset 13.
        change = 13 if name == "ReduceSum" else 18
        for axes in ([1], [-2]):
            yield Case(
                name,
                "sequence",
                f"{inner} = {name} <axes = {axes}> ({inner[0].replace('h', 'a')})",
                opsets=(7 if axes == [1] else 11, change - 1),
            )
            yield Case(
                name,
                "sequence",
                f"{inner} = {name}({inner[0].replace('h', 'a')}, axes)",
                {"axes": np.int64(axes)},
                (change, 99),
            )
        yield Case(
            name,
            "tail",
            f"{inner} = {name} <axes = [2, 3], keepdims = 0> ({inner[0].replace('h', 'a')})",
            opsets=(7, change - 1),
        )
        yield Case(
            name,
            "tail",
            f"{inner} = {name} <keepdims = 0> ({inner[0].replace('h', 'a')}, axes)",
            {"axes": np.int64([2, 3])},
            (change, 99),
        )
        yield Case(name, "sequence", f"h = {name} <axes = [2]> (a)", {"W2": (1, 3)}, (7, change - 1), reason=MIXES)
        yield Case(
            name,
            "sequence",
            f"h = {name}(a, axes)",
            {"axes": np.int64([0, -1]), "W2": (1, 3)},
            (change, 99),
            reason=MIXES,
        )
        yield Case(name, "sequence", f"h = {name}(a)", {"W2": (1, 3)}, reason=MIXES)
        yield Case(name, "sequence", f"s = Sigmoid(a)   h = {name} <noop_with_empty_axes = 1> (s)", opsets=(change, 99))
    for name in ("ArgMax", "ArgMin"):
        yield Case(name, "sequence", f"i = {name} <axis = 1> (a)   h = Cast <to = 1> (i)")
        yield Case(
            name,
            "tail",
            f"i = {name} <axis = 3, keepdims = 0> (a)   f = Cast <to = 1> (i)   h = Transpose <perm = [0, 2, 1]> (f)",
        )
        yield Case(name, "sequence", f"i = {name} <axis = 2> (a)   h = Cast <to = 1> (i)", {"W2": (1, 3)}, reason=MIXES)
        yield Case(name, "dense", f"i = {name} (a)   h = Cast <to = 1> (i)")
    for name in ("CumSum", "CumProd"):
        yield Case(name, "sequence", f"h = {name}(a, axis)", {"axis": np.int64(1)})
        yield Case(name, "sequence", f"h = {name} <reverse = 1, exclusive = 1> (a, axis)", {"axis": np.int64(-2)})
        yield Case(name, "sequence", f"h = {name}(a, axis)", {"axis": np.int64(2)}, reason=MIXES)
        yield Case(name, "sequence", f"h = {name}(a, axis)", {"axis": np.int32(-1)}, reason=MIXES)
    two = {"k": np.int64([2])}
    yield Case("TopK", "sequence", "h, i = TopK <axis = 1, k = 2> (a)", opsets=(7, 9))
    yield Case("TopK", "sequence", "h, i = TopK <axis = 1> (a, k)", two, (10, 99))
    yield Case("TopK", "sequence", "v, i = TopK <axis = -2> (a, k)   h = Cast <to = 1> (i)", two, (11, 99))
    yield Case("TopK", "sequence", "h, i = TopK <k = 5> (a)", opsets=(7, 9), reason=MIXES)
    yield Case("TopK", "sequence", "h, i = TopK(a, k)", {"k": np.int64([5])}, (10, 99), reason=MIXES)
    yield Case("Gather", "sequence", "h = Gather <axis = 1> (a, i)", {"i": np.int64([2, 0, 2])})
    yield Case("Gather", "sequence", "h = Gather <axis = 1> (a, i)", {"i": np.int64(1)})
    yield Case("Gather", "sequence", "h = Gather <axis = -2> (a, i)", {"i": np.int64([[2, 0], [1, 1]])}, (11, 99))
    yield Case(
        "Gather",
        "sequence",
        ACROSS.format(body="g = Gather <axis = 2> (t, i)   u = ReduceMax <axes = [3], keepdims = 0> (g)"),
        {"i": np.int64([[2, 0], [1, 1]])},
        (7, 17),
    )
    yield Case("Gather", "sequence", "h = Gather(a, i)", {"i": np.int64([1, 0])})
    yield Case(
        "Gather", "sequence", "h = Gather <axis = 2> (a, i)", {"i": np.int64([0, 1, 2, 3, 4])}, reason="picks neurons"
    )
    yield Case(
        "Gather",
        "sequence",
        "s = HardSigmoid(a)   g = Cast <to = 7> (s)   e = Gather(i, g)   h = ReduceMax <axes = [3], keepdims = 0> (e)",
        {"i": (2, 5)},
        (7, 17),
        reason="takes its neurons as a parameter",
    )


# Moves

ELSEWHERE = "its value 'y' is a graph output"
"""The consumer mixes another axis, so that its output carries the neurons."""


def move_cases() -> Iterator[Case]:
    yield Case("Transpose", "sequence", ACROSS.format(body="u = Relu(t)"))
    yield Case(
        "Transpose",
        "image",
        "t = Transpose <perm = [0, 2, 3, 1]> (a)   u = Mul(t, c)   h = Transpose <perm = [0, 3, 1, 2]> (u)",
        {"c": (6,)},
    )
    yield Case("Transpose", "dense", "t = Transpose(a)   u = Mul(t, c)   h = Transpose(u)", {"c": (5, 1)})
    yield Case("Transpose", "dense", "h = Transpose(a)", {"W2": (9, 3)}, reason=ELSEWHERE)
    yield Case("Flatten", "tail", "h = Flatten(a)", {"W2": (216, 3)})
    yield Case("Flatten", "tail", "p = GlobalAveragePool(a)   h = Flatten(p)")
    yield Case("Flatten", "tail", "h = Flatten <axis = -3> (a)", {"W2": (216, 3)}, (11, 99))
    yield Case("Flatten", "tail", "t = Transpose <perm = [0, 2, 3, 1]> (a)   h = Flatten(t)", {"W2": (216, 3)})
    yield Case("Flatten", "sequence", "h = Flatten <axis = 2> (a)")
    yield Case("Reshape", "tail", "h = Reshape(a, to)", {"to": np.int64([0, -1]), "W2": (216, 3)})
    yield Case("Reshape", "tail", "h = Reshape(a, to)", {"to": np.int64([-1, 216]), "W2": (216, 3)})
    yield Case("Reshape", "tail", "h = Reshape(a, to)", {"to": np.int64([0, 0, 36]), "W2": (36, 3)}, reason=ELSEWHERE)
    yield Case(
        "Reshape", "tail", "r = Reshape(a, to)   h = Transpose <perm = [0, 2, 1]> (r)", {"to": np.int64([0, 0, 36])}
    )
    yield Case(
        "Reshape", "tail", "r = Reshape(a, to)   h = Transpose <perm = [0, 2, 1]> (r)", {"to": np.int64([0, 6, -1])}
    )
    yield Case(
        "Reshape", "tail", "r = Reshape(a, to)   h = Transpose <perm = [0, 2, 1]> (r)", {"to": np.int64([-1, 6, 36])}
    )
    yield Case("Reshape", "sequence", "h = Reshape(a, to)", {"to": np.int64([-1, 5])})
    yield Case("Reshape", "sequence", "h = Reshape(a, to)", {"to": np.int64([-1, 15]), "W2": (15, 3)})
    yield Case(
        "Reshape",
        "tail",
        "s = Shape(a)   b = Gather(s, zero)   u = Unsqueeze <axes = [0]> (b)   "
        "t = Concat <axis = 0> (u, rest)   h = Reshape(a, t)",
        {"zero": np.int64(0), "rest": np.int64([-1]), "W2": (216, 3)},
        (7, 12),
    )
    yield Case(
        "Reshape",
        "tail",
        "s = Shape(a)   b = Gather(s, zero)   u = Unsqueeze(b, axes)   "
        "t = Concat <axis = 0> (u, rest)   h = Reshape(a, t)",
        {"zero": np.int64(0), "axes": np.int64([0]), "rest": np.int64([216]), "W2": (216, 3)},
        (13, 99),
    )
    yield Case(
        "Reshape",
        "tail",
        "s = Shape <start = 0, end = 2> (a)   t = Concat <axis = 0> (s, rest)   r = Reshape(a, t)   "
        "h = Transpose <perm = [0, 2, 1]> (r)",
        {"rest": np.int64([-1])},
        (15, 99),
    )
    yield Case(
        "Reshape",
        "image",
        "s = Shape(a)   r = Reshape(a, to)   e = Relu(r)   h = Reshape(e, s)",
        {"to": np.int64([0, -1])},
    )
    yield Case(
        "Reshape",
        "image",
        "r = Reshape(a, to)   n = InstanceNormalization(r, ones, zeros)   h = Reshape(n, back)",
        {
            "to": np.int64([0, 3, -1]),
            "ones": np.ones(3, np.float32),
            "zeros": np.zeros(3, np.float32),
            "back": np.int64([-1, 6, 6, 6]),
        },
        n=3,
    )
    yield Case(
        "Reshape",
        "image",
        "s = Shape(a)   r = Reshape(a, to)   n = InstanceNormalization(r, ones, zeros)   h = Reshape(n, s)",
        {"to": np.int64([0, 3, -1]), "ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.float32)},
        n=3,
    )
    yield Case(
        "Reshape",
        "dense",
        "s = Shape(x)   h = Reshape(a, t)   m = Mul(s, k)",
        {"k": np.int64(1), "t": np.int64([-1, 5])},
    )
    yield Case(
        "Reshape",
        "dense",
        "i = Cast <to = 7> (a)   r = ReduceMax <axes = [0], keepdims = 0> (i)   h = Reshape(x, r)",
        opsets=(7, 17),
        reason="takes its neurons as a parameter",
    )
    # Channel shuffle: what is one neuron of the other order stays or goes together.
    yield Case(
        "Reshape",
        "image",
        "r = Reshape(a, to)   t = Transpose <perm = [0, 2, 1, 3, 4]> (r)   h = Reshape(t, back)",
        {"to": np.int64([0, 2, 3, 6, 6]), "back": np.int64([0, 6, 6, 6])},
        n=2,
    )
    yield Case("Squeeze", "tail", "p = GlobalAveragePool(a)   h = Squeeze <axes = [2, 3]> (p)", opsets=(7, 12))
    yield Case(
        "Squeeze", "tail", "p = GlobalAveragePool(a)   h = Squeeze(p, axes)", {"axes": np.int64([-1, -2])}, (13, 99)
    )
    yield Case(
        "Squeeze",
        "tail",
        "p = GlobalAveragePool(a)   h = Squeeze(p)",
        reason="names no axes",
    )
    yield Case(
        "Squeeze",
        "dense",
        "h = Squeeze(a, axes)",
        {"axes": np.int64([1]), "W1": (4, 1), "W2": (9, 3)},
        (13, 99),
        reason="drops the axis of its neurons",
    )
    yield Case("Unsqueeze", "dense", "h = Unsqueeze <axes = [1]> (a)", opsets=(7, 12))
    yield Case("Unsqueeze", "dense", "h = Unsqueeze(a, axes)", {"axes": np.int64([0, 2])}, (13, 99))
    yield Case(
        "Unsqueeze",
        "dense",
        "u = Unsqueeze(a, axes)   c = Conv(u, W)   h = Squeeze(c, axes)",
        {"axes": np.int64([2]), "W": (6, 5, 1), "W2": (6, 3)},
        (13, 99),
    )
    yield Case("Shape", "dense", "s = Shape(a)   h = Reshape(a, s)")
    yield Case("Shape", "dense", "s = Shape(a)   h = Relu(a)")
    yield Case(
        "Shape",
        "dense",
        "s = Shape(a)   i = Gather(s, one)   f = Cast <to = 1> (i)   h = Div(a, f)",
        {"one": np.int64(1)},
        reason="Div 'h' reads how many neurons there are",
    )
    yield Case(
        "Shape",
        "dense",
        "s = Shape(a)   z = Slice <starts = [0], ends = [1]> (s)   f = Cast <to = 1> (z)   h = Div(a, f)",
        opsets=(7, 9),
    )
    yield Case(
        "Shape",
        "dense",
        "s = Shape(a)   i = Gather(s, zero)   f = Cast <to = 1> (i)   h = Div(a, f)",
        {"zero": np.int64(0)},
    )
    yield Case("Shape", "dense", "s = Shape(a)   z = Size(a)   h = Relu(a)", reason="Size 'z' is not supported")
    yield from concat_cases()
    yield from cut_cases()
    yield from spread_cases()


def concat_cases() -> Iterator[Case]:
    yield Case("Concat", "dense", "s = Sigmoid(a)   h = Concat <axis = 1> (a, s)", {"W2": (10, 3)})
    yield Case("Concat", "dense", "s = Sigmoid(a)   h = Concat <axis = -1> (s, x, a)", {"W2": (14, 3)}, (11, 99))
    yield Case("Concat", "dense", "h = Concat <axis = 1> (x, a)", {"W2": (9, 3)})
    yield Case(
        "Concat", "dense", "[other] b = MatMul(x, V)   h = Concat <axis = 1> (b, a)", {"V": (4, 3), "W2": (8, 3)}, n=8
    )
    yield Case("Concat", "sequence", "s = Sigmoid(a)   h = Concat <axis = 1> (a, s)")
    yield Case("Concat", "sequence", "[other] b = MatMul(x, V)   h = Concat <axis = 0> (a, b)", {"V": (4, 5)})
    yield Case(
        "Concat",
        "sequence",
        "c = Concat <axis = 1> (a, k)   h = Relu(c)",
        {"k": (4, 1, 5)},
        reason="joins its neurons with the constant 'k'",
    )
    yield Case("Concat", "image", "s = Sigmoid(a)   h = Concat <axis = 1> (a, x, s)", {"W2": (3, 14, 1, 1)})


def cut_cases() -> Iterator[Case]:
    gate = "b, c = Split <axis = 1{extra}> (a{slot})   s = Sigmoid(b)   h = Mul(s, c)"
    wide: dict[str, Weight] = {"W1": (4, 10)}
    yield Case("Split", "dense", gate.format(extra="", slot=""), wide, (7, 17), n=5)
    yield Case("Split", "dense", gate.format(extra=", split = [5, 5]", slot=""), wide, (7, 12), n=5)
    yield Case(
        "Split", "dense", gate.format(extra="", slot=", sizes"), {**wide, "sizes": np.int64([5, 5])}, (13, 99), n=5
    )
    yield Case("Split", "dense", gate.format(extra=", num_outputs = 2", slot=""), wide, (18, 99), n=5)
    uneven = "b, c = Split <axis = -1> (a, sizes)   s = Sigmoid(b)   h = Concat <axis = 1> (c, s)"
    yield Case("Split", "dense", uneven, {"sizes": np.int64([2, 3])}, (13, 99))
    short = "b, c, d = Split <axis = 1, num_outputs = 3> (a)   s = Sigmoid(d)   h = Concat <axis = 1> (c, s)"
    yield Case("Split", "dense", short, {"W1": (4, 8), "W2": (5, 3)}, (18, 99), n=8)
    along = "b, c, d = Split <axis = 1> (a)   s = Sigmoid(b)   h = Mul(s, d)"
    yield Case("Split", "sequence", along, opsets=(7, 17))
    yield Case(
        "Split",
        "image",
        "b, c = Split <axis = 1> (a)   s = Sigmoid(b)   h = Mul(s, c)",
        {"W2": (3, 3, 1, 1)},
        (7, 17),
        n=3,
    )
    bounds = {"s": np.int64([1]), "e": np.int64([4]), "t": np.int64([1]), "one": np.int64([1])}
    narrow: dict[str, Weight] = {"W2": (3, 3)}
    yield Case("Slice", "dense", "h = Slice <starts = [1], ends = [4], axes = [1]> (a)", narrow, (7, 9))
    yield Case("Slice", "dense", "h = Slice <starts = [0, -3], ends = [9, 9000]> (a)", narrow, (7, 9))
    yield Case("Slice", "dense", "h = Slice(a, s, e, t, one)", {**bounds, **narrow}, (10, 99))
    yield Case("Slice", "dense", "h = Slice(a, s, e, t)", {**bounds, **narrow, "t": np.int64([-1])}, (10, 99))
    halves = "b = Slice(a, zero, five, one)   c = Slice(a, five, end, one)   s = Sigmoid(b)   h = Mul(c, s)"
    numbers = {"zero": np.int64([0]), "five": np.int64([5]), "one": np.int64([1]), "end": np.int64([2**63 - 1])}
    yield Case("Slice", "dense", halves, {**numbers, "W1": (4, 10)}, (10, 99), n=5)
    yield Case("Slice", "sequence", "h = Slice(a, s, e, t, one)", bounds, (10, 99))
    yield Case(
        "Slice",
        "dense",
        "h = Slice(a, s, e, t, two)",
        {**bounds, "two": np.int64([2]), "W2": (2, 3)},
        (10, 99),
        reason="takes every 2th neuron",
    )
    yield Case(
        "Slice",
        "dense",
        "h = Slice(a, s, e, t, back)",
        {"s": np.int64([-1]), "e": np.int64([-100]), "t": np.int64([1]), "back": np.int64([-1])},
        (10, 99),
        reason="takes every -1th neuron",
    )


def spread_cases() -> Iterator[Case]:
    yield Case(
        "Expand", "dense", "u = Unsqueeze <axes = [1]> (a)   h = Expand(u, to)", {"to": np.int64([1, 3, 1])}, (8, 12)
    )
    yield Case("Expand", "dense", "h = Expand(a, to)", {"to": np.int64([2, 1, 5])})
    yield Case("Expand", "dense", "s = Shape(a)   h = Expand(a, s)")
    yield Case("Expand", "dense", "h = Expand(a, to)", {"to": np.int64([1])})
    yield Case(
        "Expand",
        "dense",
        "h = Expand(a, to)",
        {"to": np.int64([1, 5]), "W1": (4, 1)},
        reason="has the size of its neurons' axis computed",
    )
    yield Case("Tile", "sequence", "h = Tile(a, times)", {"times": np.int64([1, 2, 1])})
    yield Case(
        "Tile",
        "sequence",
        "h = Tile(a, times)",
        {"times": np.int64([1, 1, 2]), "W2": (10, 3)},
        reason="repeats its neurons",
    )
    yield Case("Pad", "dense", "h = Pad <pads = [0, 1, 0, 2], value = 0.5> (a)", {"W2": (8, 3)}, (7, 10))
    yield Case(
        "Pad",
        "dense",
        "h = Pad(a, pads, value)",
        {"pads": np.int64([0, 1, 0, 2]), "value": np.float32(0.5), "W2": (8, 3)},
        (11, 99),
    )
    yield Case(
        "Pad",
        "dense",
        "h = Pad(a, pads, , axes)",
        {"pads": np.int64([2, 1]), "axes": np.int64([-1]), "W2": (8, 3)},
        (18, 99),
    )
    yield Case(
        "Pad", "image", "h = Pad(a, pads)", {"pads": np.int64([0, 2, 0, 0, 0, 1, 0, 0]), "W2": (3, 9, 1, 1)}, (11, 99)
    )
    yield Case(
        "Pad",
        "image",
        """h = Pad <mode = "reflect"> (a, pads)""",
        {"pads": np.int64([0, 0, 2, 1, 0, 0, 0, 3])},
        (11, 99),
    )
    yield Case("Pad", "image", """h = Pad <mode = "edge", pads = [0, 0, 2, 1, 0, 0, 0, 3]> (a)""", opsets=(7, 10))
    yield Case(
        "Pad",
        "image",
        """h = Pad <mode = "reflect"> (a, pads)""",
        {"pads": np.int64([0, 1, 0, 0, 0, 0, 0, 0]), "W2": (3, 7, 1, 1)},
        (11, 99),
        reason="pads among its neurons",
    )
    yield Case(
        "Pad",
        "dense",
        "h = Pad(a, pads)",
        {"pads": np.int64([0, -1, 0, 0]), "W2": (4, 3)},
        (11, 99),
        reason="pads among its neurons",
    )
    twice = np.float32([1, 1, 2, 2])
    yield Case("Upsample", "image", "h = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (a)", opsets=(7, 8))
    yield Case("Upsample", "image", "h = Upsample(a, scales)", {"scales": twice}, (9, 9))
    yield Case(
        "Upsample",
        "sequence",
        "h = Upsample(a, scales)",
        {"scales": np.float32([1, 1, 2]), "W2": (10, 3)},
        (9, 9),
        reason="resizes the axis of its neurons, or by a factor that is computed",
    )
    yield Case("Resize", "image", "h = Resize(a, scales)", {"scales": twice}, (10, 10))
    none = {"roi": np.float32([])}
    yield Case("Resize", "image", "h = Resize(a, roi, scales)", {**none, "scales": twice}, (11, 99))
    yield Case("Resize", "image", "h = Resize(a, , scales)", {"scales": twice}, (13, 99))
    yield Case("Resize", "image", "h = Resize(a, , , sizes)", {"sizes": np.int64([2, 6, 9, 4])}, (13, 99))
    yield Case("Resize", "image", "h = Resize <axes = [2, 3]> (a, , , sizes)", {"sizes": np.int64([9, 4])}, (18, 99))
    yield Case("Resize", "image", "h = Resize <axes = [1, 3]> (a, , scales)", {"scales": np.float32([1, 2])}, (18, 99))
    sized = "s = Shape(a)   b = Slice(s, zero, two, zero)   t = Concat <axis = 0> (b, hw)   h = Resize(a, , , t)"
    yield Case(
        "Resize", "image", sized, {"zero": np.int64([0]), "two": np.int64([2]), "hw": np.int64([9, 4])}, (13, 99)
    )
    yield Case(
        "Resize",
        "sequence",
        "h = Resize(a, , scales)",
        {"scales": np.float32([1, 1, 2]), "W2": (10, 3)},
        (13, 99),
        reason="resizes the axis of its neurons, or by a factor that is computed",
    )


def refused_cases() -> Iterator[Case]:
    yield Case(
        "DFT",
        "dense",
        "c = Unsqueeze(a, last)   f = DFT <axis = 1> (c)   s = ReduceSum(f, last)   h = Squeeze(s, last)",
        {"last": np.int64([-1])},
        (17, 19),
        reason=MIXES,
    )
    yield Case(
        "DepthToSpace",
        "image",
        "h = DepthToSpace <blocksize = 2> (a)",
        {"W1": (8, 2, 3, 3), "b1": (8,), "W2": (3, 2, 1, 1)},
        reason=MIXES,
    )
    yield Case("SpaceToDepth", "image", "h = SpaceToDepth <blocksize = 2> (a)", {"W2": (3, 24, 1, 1)}, reason=MIXES)
    yield Case(
        "Det", "image", "d = Det(a)   h = Unsqueeze(d, axes)", {"axes": np.int64([2, 3])}, (13, 99), reason=MIXES
    )
    yield Case("Einsum", "dense", """h = Einsum <equation = "ij,jk->ik"> (a, c)""", {"c": (5, 5)}, reason=MIXES)
    yield Case("LRN", "image", "h = LRN <size = 3> (a)", reason=MIXES)
    yield Case("MeanVarianceNormalization", "image", "h = MeanVarianceNormalization(a)", opsets=(9, 12), reason=MIXES)
    quantizes = "quantizes: prune before you quantize"
    scale = {"scale": np.float32(0.1), "zero": np.uint8(3)}
    yield Case(
        "QuantizeLinear",
        "dense",
        "q = QuantizeLinear(a, scale, zero)   h = DequantizeLinear(q, scale, zero)",
        scale,
        (10, 99),
        reason=quantizes,
    )
    yield Case(
        "DequantizeLinear",
        "dense",
        "q = Cast <to = 3> (a)   h = DequantizeLinear(q, scale)",
        {"scale": np.float32(0.1)},
        (10, 99),
        reason=quantizes,
    )
    yield Case(
        "DynamicQuantizeLinear",
        "dense",
        "q, s, z = DynamicQuantizeLinear(a)   h = DequantizeLinear(q, s, z)",
        {},
        reason=quantizes,
    )
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights: dict[str, Weight] = {"W": (1, 3 * gates, 5), "R": (1, 3 * gates, 3), "W2": (3, 3)}
        body = f"h = {name} <hidden_size = 3> (a, W, R)"
        yield Case(name, "sequence", body, weights, reason="is recurrent: its gates share one weight")
    attention = "h = Attention <q_num_heads = 1, kv_num_heads = 1> (a, a, a)"
    yield Case(
        "Attention",
        "sequence",
        attention,
        {},
        (23, 99),
        reason="is attention; heads and their dimensions are not pruned",
    )


CASES = [*elementwise_cases(), *norm_cases(), *axis_cases(), *move_cases(), *refused_cases()]


def numbered(cases: list[Case]) -> list[object]:
    counts: dict[str, int] = {}
    params = []
    for case in cases:
        counts[case.operator] = counts.get(case.operator, 0) + 1
        for opset in opsets(case):
            params.append(pytest.param(case, opset, id=f"{case.operator}-{counts[case.operator]}-opset{opset}"))
    return params


def found(proto: ModelProto) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers by the names of all their members, and reasons."""
    layers, refusals = find_layers(graph_of(proto))
    return (
        {name: layer for layer in layers for name in layer.members},
        {refusal.name: refusal.reason for refusal in refusals},
    )


@pytest.mark.parametrize(("case", "opset"), numbered([case for case in CASES if case.reason is None]))
def test_operator_that_passes_neurons_on(case: Case, opset: int) -> None:
    proto = between(case.kind, case.body, opset, **case.weights)
    layers, refusals = found(proto)
    assert "fc1" in layers, refusals
    weight = {**KINDS[case.kind][3], **case.weights}["W1"]
    sizes = weight if isinstance(weight, tuple) else weight.shape
    assert layers["fc1"].n == (case.n or (sizes[0] if len(sizes) > 2 else sizes[-1]))
    try:
        run(proto, rows(case.kind))
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        pytest.skip(f"onnxruntime: {error}")
    assert_sound(proto, rows(case.kind), tolerance=2e-5)


@pytest.mark.parametrize(("case", "opset"), numbered([case for case in CASES if case.reason is not None]))
def test_operator_that_refuses_neurons(case: Case, opset: int) -> None:
    layers, refusals = found(between(case.kind, case.body, opset, **case.weights))
    assert "fc1" not in layers
    assert case.reason is not None
    reason = case.reason if case.reason == ELSEWHERE or case.reason[0].isupper() else f"{case.operator} '"
    assert refusals["fc1"].startswith(reason)
    assert case.reason in refusals["fc1"]


def test_cases_hold_each_operator_of_the_table() -> None:
    assert {case.operator for case in CASES} == OPERATORS.keys()


REFUSERS = (operators.mixes, operators.quantizes, operators.attends, operators.recurs)


def test_each_operator_passes_neurons_on_unless_it_never_does() -> None:
    never = {name for name, entry in OPERATORS.items() if entry in REFUSERS}
    assert {case.operator for case in CASES if case.reason is None} == OPERATORS.keys() - never


def test_each_operator_with_axes_has_a_case_on_the_neurons_axis_and_one_beside_it() -> None:
    entries = (
        moves.along, joins.cut, moves.expand, joins.gather, moves.one_axis, joins.pad, moves.pool, moves.reduce,
        moves.reduce_one, moves.resize, moves.squeeze, moves.tile, norms.instance, norms.group, norms.layer,
        norms.softmax,
    )  # fmt: skip
    axial = {name for name, entry in OPERATORS.items() if entry in entries}
    assert axial <= {case.operator for case in CASES if case.reason is not None}
    assert axial <= {case.operator for case in CASES if case.reason is None}


def test_group_normalization_of_opset_18_has_a_scale_for_each_group() -> None:
    """onnx.checker refuses it as deprecated, so that only the analysis is asked."""
    body = "h = GroupNormalization <num_groups = 3> (a, scale, bias)"
    graph = Graph(between("image", body, 18, scale=(3,), bias=(3,)))
    (layer,), _ = find_layers(graph)
    assert layer.n == 3
    assert sorted(part.labels.tolist() for part in layer.followers) == [[0, 1, 2], [0, 1, 2]]
    assert [(count.whole, count.labels.tolist()) for count in layer.counts] == [((3,), [0, 1, 2])]


def test_channels_of_a_single_group_are_one_neuron() -> None:
    proto = between("image", "h = GroupNormalization <num_groups = 1> (a, scale, bias)", 21, scale=(6,), bias=(6,))
    assert found(proto)[0]["fc1"].n == 1

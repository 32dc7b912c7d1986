"""Constants made of constants: what `folded` says is what onnxruntime gives."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, graph_of, model, normal, run
from onnx import helper

from onnxdpp.graph.folding import FOLDING, folded
from onnxdpp.graph.index import Use

V = normal(2, 1, 3, 4)

CASES: list[tuple[str, dict[str, Any], list[Array], int]] = [
    ("Cast", {"to": 10}, [V], 17),
    ("Cast", {"to": 11}, [V], 9),
    ("Cast", {"to": 1}, [V.astype(np.float16)], 17),
    ("Cast", {"to": 7}, [V * 3], 17),
    ("Flatten", {}, [V], 7),
    ("Flatten", {"axis": 0}, [V], 17),
    ("Flatten", {"axis": 3}, [V], 17),
    ("Flatten", {"axis": 4}, [V], 17),
    ("Flatten", {"axis": -1}, [V], 17),
    ("Identity", {}, [V], 7),
    ("Reshape", {}, [V, np.int64([0, -1])], 7),
    ("Reshape", {}, [V, np.int64([4, 3, 2])], 17),
    ("Reshape", {}, [V, np.int64([-1])], 17),
    ("Reshape", {}, [V, np.int64([0, 0, 12])], 17),
    ("Reshape", {"allowzero": 1}, [V[:0], np.int64([0, 3])], 17),
    ("Squeeze", {}, [V], 7),
    ("Squeeze", {}, [V], 17),
    ("Squeeze", {"axes": [1]}, [V], 7),
    ("Squeeze", {}, [V, np.int64([-3])], 17),
    ("Transpose", {}, [V], 7),
    ("Transpose", {"perm": [3, 0, 2, 1]}, [V], 17),
    ("Unsqueeze", {"axes": [0, 3]}, [V], 7),
    ("Unsqueeze", {}, [V, np.int64([-1])], 17),
    ("Unsqueeze", {}, [V, np.int64([0, -1, 2])], 17),
]


def by_onnxruntime(operator: str, attributes: dict[str, Any], inputs: list[Array], opset: int) -> Array:
    names = [f"c{index}" for index in range(len(inputs))]
    proto = model(
        "g (float[N] x) => (float[N] y) { y = Relu(x) }", opset=opset, **dict(zip(names, inputs, strict=True))
    )  # fmt: skip
    proto.graph.node.append(helper.make_node(operator, names, ["z"], **attributes))
    kind = attributes.get("to", helper.np_dtype_to_tensor_dtype(inputs[0].dtype))
    proto.graph.output.append(helper.make_tensor_value_info("z", kind, None))
    return run(proto, {"x": normal(1)})[1]


@pytest.mark.parametrize(("operator", "attributes", "inputs", "opset"), CASES)
def test_folded_constant_is_that_of_onnxruntime(
    operator: str, attributes: dict[str, Any], inputs: list[Array], opset: int
) -> None:
    found = folded(helper.make_node(operator, [str(i) for i in range(len(inputs))], ["z"], **attributes), inputs)
    expected = by_onnxruntime(operator, attributes, inputs, opset)
    assert found is not None
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)


def test_cases_hold_each_operator_that_folds() -> None:
    assert {case[0] for case in CASES} == set(FOLDING)


@settings(max_examples=50)
@given(st.permutations(range(4)), st.integers(-4, 4))
def test_folded_chain_is_that_of_onnxruntime(perm: list[int], axis: int) -> None:
    perm_text = ", ".join(map(str, perm))
    proto = model(
        f"""g (float[N] x) => (float[A, B] z) {{
            t = Transpose <perm = [{perm_text}]> (V)   h = Cast <to = 10> (t)   i = Identity(h)
            c = Cast <to = 1> (i)   z = Flatten <axis = {axis}> (c)
        }}""",
        V=V,
    )
    array = graph_of(proto).array("z")
    assert array is not None
    np.testing.assert_array_equal(array, run(proto, {"x": normal(1)})[0])


@pytest.mark.parametrize(
    ("operator", "attributes", "inputs"),
    [
        ("Reshape", {}, [V, np.int64([5, -1])]),
        ("Reshape", {}, [V, None]),
        ("Squeeze", {"axes": [0]}, [V]),
        ("Transpose", {"perm": [0, 1]}, [V]),
        ("Unsqueeze", {"axes": [9]}, [V]),
        ("Cast", {"to": 99}, [V]),
        ("Identity", {}, [None]),
    ],
)
def test_what_breaks_the_model_is_not_known(operator: str, attributes: dict[str, Any], inputs: list[Any]) -> None:
    node = helper.make_node(operator, [str(i) for i in range(len(inputs))], ["z"], **attributes)
    assert folded(node, inputs) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Identity(C)   y = Add(x, c)", Use(0, 0)),
        ("b = Cast <to = 1> (C)   c = Identity(b)   y = Add(x, c)", Use(0, 0)),
        ("c = Identity(C)   y = Add(x, c)   z = Neg(C)", Use(0, 0)),
        ("c = Identity(C)   y = Add(x, c)   z = Neg(c)", Use(1, 1)),
        ("b = Transpose <perm = [1, 0]> (C)   y = Add(x, b)", Use(1, 1)),
        ("b = Cast <to = 1> (C)   c = Transpose(b)   y = Add(x, c)", Use(2, 1)),
    ],
)
def test_constant_is_rewritten_before_casts_that_nobody_else_reads(body: str, expected: Use) -> None:
    dtype = np.float16 if "Cast" in body else np.float32
    graph = graph_of(model(f"g (float[4, 4] x) => (float[4, 4] y) {{ {body} }}", C=normal(4, 4, dtype=dtype)))
    reader = next(index for index, node in enumerate(graph.nodes) if node.op_type == "Add")
    assert graph.source(Use(reader, 1)) == expected

"""Pruning what is no chain of dense layers: convolutions, couplings, padding, memory; from calibration to the refit."""

from typing import Any

import numpy as np
import pytest
from models import Array, graph_of, model, node, normal, run
from onnx import ModelProto

import onnxdpp
from onnxdpp.graph.layers import find_layers
from onnxdpp.graph.operators import OPERATORS


def convolutions(**options: Any) -> ModelProto:
    """Two convolutions, pooling, flattening, two dense layers. Layers: c1 (8), c2 (6), fc1 (7)."""
    return model(
        """g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
            [c1] a = Conv <pads = [1, 1, 1, 1]> (x, W1, b1)
            h = Relu(a)
            [c2] b = Conv <strides = [2, 2]> (h, W2)
            k = Tanh(b)
            f = Flatten(k)
            [fc1] c = Gemm(f, W3, b3)
            l = Relu(c)
            [fc2] y = MatMul(l, W4)
        }""",
        **{"W1": (8, 3, 3, 3), "b1": (8,), "W2": (6, 8, 3, 3), "W3": (54, 7), "b3": (7,), "W4": (7, 4), **options},
    )


def residual(**options: Any) -> ModelProto:
    """A stem, two residual blocks, a head. Layers: stem (8, with out1 and out2), in1 (6), in2 (6)."""
    return model(
        """g (float[N, 5] x) => (float[N, 3] y) {
            [stem] s = Gemm(x, W0, b0)
            [in1] a = MatMul(s, W1)  h = Relu(a)  [out1] b = MatMul(h, W2)  t = Add(s, b)
            [in2] c = MatMul(t, W3)  k = Relu(c)  [out2] d = MatMul(k, W4)  u = Add(t, d)
            [head] y = Gemm(u, W5)
        }""",
        **{"W0": (5, 8), "b0": (8,), "W1": (8, 6), "W2": (6, 8), "W3": (8, 6), "W4": (6, 8), "W5": (8, 3), **options},
    )


def correlated(*shape: int, seed: int = 3) -> Array:
    """Rows with fewer directions than entries, so that dropped neurons can be told from kept ones."""
    size = int(np.prod(shape[1:]))
    return (normal(shape[0], max(2, size // 8), seed=seed) @ normal(max(2, size // 8), size, seed=4)).reshape(shape)


def test_layers_are_those_of_the_docstrings() -> None:
    found = {layer.name: layer for layer in find_layers(graph_of(convolutions()))[0]}
    assert {name: layer.n for name, layer in found.items()} == {"c1": 8, "c2": 6, "fc1": 7}
    coupled = {layer.name: layer.members for layer in find_layers(graph_of(residual()))[0]}
    assert coupled == {"stem": ("stem", "out1", "out2"), "in1": ("in1",), "in2": ("in2",)}


@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_keeping_all_without_refit_keeps_every_bit(unit: str) -> None:
    for proto, x in ((convolutions(), normal(64, 3, 8, 8)), (residual(), normal(64, 5))):
        result = onnxdpp.prune(proto, {"x": x}, keep=1.0, unit=unit, refit="none", provider="cpu")
        np.testing.assert_array_equal(run(result.model, {"x": x})[0], run(proto, {"x": x})[0])


@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_keeping_all_with_the_refit_changes_nothing_but_rounding(unit: str) -> None:
    for proto, x in ((convolutions(), normal(300, 3, 8, 8)), (residual(), normal(300, 5))):
        result = onnxdpp.prune(proto, {"x": x}, keep=1.0, unit=unit, provider="cpu")
        old, new = run(proto, {"x": x})[0], run(result.model, {"x": x})[0]
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-4 * np.abs(old).max())


def test_refit_of_a_convolution_is_least_squares_on_its_patches() -> None:
    """By hand: all patches of the kept channels and a column of ones, against what the original gave."""
    proto, x = convolutions(), correlated(40, 3, 8, 8)
    result = onnxdpp.prune(proto, {"x": x}, keep=0.5, layers="c1", method="dpp", provider="cpu")
    (entry,) = result.report["layers"]
    assert entry["observations"] == 40 * 9  # all positions: fewer than 32 for each of 72 inputs
    keep = entry["keep"]
    weights = {tensor.name: np.frombuffer(tensor.raw_data, np.float32) for tensor in proto.graph.initializer}
    for name in ("h", "b"):
        proto.graph.output.append(type(proto.graph.output[0])(name=name))
        proto.graph.output[-1].type.tensor_type.elem_type = 1
    _, hidden, wanted = run(proto, {"x": x})
    windows = np.lib.stride_tricks.sliding_window_view(hidden[:, keep], (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(360, -1).astype(np.float64)
    target = wanted.transpose(0, 2, 3, 1).reshape(360, -1)
    solution, *_ = np.linalg.lstsq(np.hstack([patches, np.ones((360, 1))]), target, rcond=None)
    best = np.hstack([patches, np.ones((360, 1))]) @ solution
    new = {tensor.name: tensor for tensor in result.model.graph.initializer}
    kernel = np.frombuffer(new["W2"].raw_data, np.float32).reshape(6, -1)
    bias = np.frombuffer(new[node(result.model, "c2").input[2]].raw_data, np.float32)
    mine = patches @ kernel.T + bias
    assert np.sum((mine - target) ** 2) <= 1.001 * np.sum((best - target) ** 2) + 1e-6
    assert weights["W2"].size == 2 * kernel.size


def test_affine_refit_of_a_structure_beats_none() -> None:
    for proto, x in ((convolutions(), correlated(400, 3, 8, 8)), (residual(), correlated(400, 5))):
        errors = {}
        for refit in ("affine", "linear", "none"):
            result = onnxdpp.prune(proto, {"x": x}, keep=0.5, refit=refit, method="dpp", provider="cpu")
            errors[refit] = result.report["discrepancy"]["y"]["relative_l2"]
        assert errors["affine"] <= errors["linear"] * 1.01 < errors["none"]


def test_consumers_behind_a_later_change_are_refitted_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head reads the residual stream, which is pruned first, before the blocks that write to it."""
    from onnxdpp.pruning import _Run

    proto, x = residual(), normal(500, 5)
    options: dict[str, Any] = {"keep": 0.5, "method": "dpp", "provider": "cpu"}
    with_it = onnxdpp.prune(proto, {"x": x}, **options).report["discrepancy"]["y"]["relative_l2"]
    monkeypatch.setattr(_Run, "refit_behind", lambda run: None)
    without = onnxdpp.prune(proto, {"x": x}, **options).report["discrepancy"]["y"]["relative_l2"]
    assert with_it < without


def test_edges_of_a_convolution() -> None:
    proto, x = convolutions(), correlated(300, 3, 8, 8)
    result = onnxdpp.prune(proto, {"x": x}, keep=0.25, unit="edge", layers="c2", provider="cpu")
    assert result.report["layers"][0]["kept"] == 18
    kernel = next(tensor for tensor in result.model.graph.initializer if tensor.name == "W2")
    zeros = np.frombuffer(kernel.raw_data, np.float32).reshape(6, -1)
    assert (np.count_nonzero(zeros, axis=1) == 18).all()


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_grouped_and_transposed_convolutions_are_refitted(operator: str, group: int) -> None:
    shape = (8, 6 // group, 3) if operator == "ConvTranspose" else (6, 8 // group, 3)
    proto = model(
        f"""g (float[N, 4, 9] x) => (float[N, 6, L] y) {{
            [c1] a = Conv <pads = [1, 1]> (x, W1, b1)   h = Relu(a)
            [c2] y = {operator} <group = {group}, strides = [2]> (h, W2)
        }}""",
        W1=(8, 4, 3), b1=(8,), W2=shape,
    )  # fmt: skip
    x = correlated(300, 4, 9)
    errors = {}
    for refit in ("affine", "none"):
        result = onnxdpp.prune(proto, {"x": x}, keep=0.5, refit=refit, provider="cpu")
        assert [(entry["width"], entry["kept"]) for entry in result.report["layers"]] == [(8 // group, 4 // group)]
        errors[refit] = result.report["discrepancy"]["y"]["relative_l2"]
    assert errors["affine"] < errors["none"]


def test_positions_of_large_maps_are_sampled() -> None:
    proto, x = convolutions(), normal(600, 3, 8, 8)
    entries = {
        entry["name"]: entry for entry in onnxdpp.prune(proto, {"x": x}, keep=0.5, provider="cpu").report["layers"]
    }
    assert entries["c1"]["observations"] == 4 * 600  # ceil(32 x 72 / 600) of 9 positions of each row
    assert entries["fc1"]["observations"] == 600


def test_structures_do_not_depend_on_the_batch_size() -> None:
    proto, x = convolutions(), normal(600, 3, 8, 8)
    reports = [onnxdpp.prune(proto, {"x": x}, keep=0.5, batch_size=size, provider="cpu").report for size in (7, 64)]
    for old, new in zip(reports[0]["layers"], reports[1]["layers"], strict=True):
        assert (old["keep"], old["observations"]) == (new["keep"], new["observations"])
        assert old["loss"] == pytest.approx(new["loss"], rel=1e-6)


def test_little_memory_means_channels() -> None:
    proto, x = convolutions(), correlated(500, 3, 8, 8)
    errors = {}
    for memory, observed in ((2**31, "inputs"), (8 * 30**2, "channels")):
        result = onnxdpp.prune(proto, {"x": x}, keep=0.5, memory=memory, layers=["c1", "c2"], provider="cpu")
        assert [entry["observed"] for entry in result.report["layers"]] == [observed] * 2
        errors[observed] = result.report["discrepancy"]["y"]["relative_l2"]
    bare = onnxdpp.prune(proto, {"x": x}, keep=0.5, refit="none", layers=["c1", "c2"], provider="cpu")
    assert errors["inputs"] <= errors["channels"] < bare.report["discrepancy"]["y"]["relative_l2"]


def test_edges_beyond_the_memory_are_refused() -> None:
    with pytest.raises(onnxdpp.NothingToPrune) as caught:
        onnxdpp.prune(convolutions(), "random:9", keep=0.5, unit="edge", layers="c2", memory=8 * 71**2, provider="cpu")
    assert ("c2", "the moments of its 72 inputs would take 41472 bytes, more than memory allows") in [
        tuple(entry) for entry in caught.value.refusals
    ]


def test_every_section_keeps_a_neuron() -> None:
    """Two producers side by side: one writes next to nothing, and still may not vanish."""
    proto = model(
        """g (float[N, 5] x) => (float[N, 3] y) {
            [one] a = MatMul(x, A)  [two] b = MatMul(x, B)  c = Concat <axis = -1> (a, b)  h = Relu(c)
            [out] y = MatMul(h, C)
        }""",
        A=(5, 6), B=normal(5, 4) * np.float32(1e-6), C=(10, 3),
    )  # fmt: skip
    for method in ("dpp", "importance", "random"):
        (entry,) = onnxdpp.prune(proto, {"x": normal(99, 5)}, keep=0.2, method=method, provider="cpu").report["layers"]
        assert entry["members"] == ["one", "two"]
        assert len(entry["keep"]) == 2
        assert sum(neuron < 6 for neuron in entry["keep"]) == 1


def test_gate_whose_shape_is_computed_from_the_channels() -> None:
    """Squeeze and excite as TorchScript writes it: the gate is reshaped to Shape(h)[:2] and ones."""
    proto = model(
        """g (float[N, 3, 6, 6] x) => (float[N, 2, 4, 4] y) {
            [c1] a = Conv(x, W1)  h = Relu(a)
            s = Shape(h)  n0 = Gather(s, zero)  c0 = Gather(s, one)
            n1 = Unsqueeze(n0, axes)  c1 = Unsqueeze(c0, axes)  t = Concat <axis = 0> (n1, c1, ones, ones)
            m = ReduceMean <axes = [2, 3], keepdims = 0> (h)
            [d] e = Gemm(m, W2)  f = Relu(e)
            [u] g = Gemm(f, W3)  i = Sigmoid(g)  j = Reshape(i, t)  k = Mul(h, j)
            [c2] y = Conv(k, W4)
        }""",
        W1=(8, 3, 3, 3), W2=(8, 4), W3=(4, 8), W4=(2, 8, 1, 1), zero=np.array(0), one=np.array(1),
        axes=np.array([0]), ones=np.array([1]),
    )  # fmt: skip
    found = onnxdpp.inspect(proto, verify=True, provider="cpu")["layers"]
    neurons = {part["name"]: part for part in found if part["unit"] == "neuron"}
    assert {name: part["producers"] for name, part in neurons.items()} == {"c1": ["c1", "u"], "d": ["d"]}
    assert all(part["verdict"]["passed"] for part in neurons.values())


def transformer() -> ModelProto:
    """The feed-forward part of a block, upon tokens. Layers: fc1 (8)."""
    return model(
        """g (float[N, T, 4] x, int64[N, T] mask) => (float[N, T, 4] y, int64[N, T] m) {
            m = Identity(mask)  [fc1] a = MatMul(x, W1)  h = Relu(a)  [fc2] b = MatMul(h, W2)  y = Add(x, b)
        }""",
        W1=(4, 8), W2=(8, 4),
    )  # fmt: skip


def test_masked_positions_are_not_observed() -> None:
    """What stands in the padding, however wild, changes nothing."""
    x, mask = normal(50, 6, 4), (np.arange(6) < np.arange(50)[:, None] % 6 + 1).astype(np.int64)
    wild = np.where(mask[..., None] == 0, np.float32(1e3) * normal(50, 6, 4, seed=9), x)
    options: dict[str, Any] = {"keep": 0.5, "mask": "mask", "provider": "cpu"}
    plain = onnxdpp.prune(transformer(), {"x": x, "mask": mask}, **options)
    masked = onnxdpp.prune(transformer(), {"x": wild, "mask": mask}, **options)
    assert plain.report["layers"][0]["observations"] == int(mask.sum())
    assert masked.model == plain.model


def test_verify_says_that_sound_layers_are_sound() -> None:
    for proto in (convolutions(), residual(), transformer()):
        layers = [
            part for part in onnxdpp.inspect(proto, verify=True, provider="cpu")["layers"] if part["unit"] == "neuron"
        ]
        assert layers
        assert all(layer["verdict"]["passed"] and layer["verdict"]["permuted"] < 1e-4 for layer in layers)


@pytest.mark.parametrize(("operator", "arguments"), [("Softmax", "a"), ("CumSum", "a, axis")])
def test_verify_finds_a_planted_fault(operator: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, operator, lambda step: OPERATORS["Relu"](step))
    proto = model(
        f"""g (float[N, 4] x) => (float[N, 3] y) {{
            [f] a = MatMul(x, A)  h = {operator}({arguments})  y = MatMul(h, B)
        }}""",
        A=(4, 6), B=(6, 3), axis=np.array(1),
    )  # fmt: skip
    (layer,) = (
        part for part in onnxdpp.inspect(proto, verify=True, provider="cpu")["layers"] if part["unit"] == "neuron"
    )
    assert not layer["verdict"]["passed"]


# Graphs that look as if they could be cut


def hidden(body: str, **weights: Any) -> ModelProto:
    """A MatMul of 6 neurons, `body` from a to h, a MatMul."""
    return model(
        f"g (float[N, 4] x) => (float[N, 3] y) {{ [f] a = MatMul(x, A)  {body}  [o] y = MatMul(h, B) }}",
        **{"A": (4, 6), "B": (6, 3), **weights},
    )


ONE = np.array([1])


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (
            hidden(
                """sh = Shape(a)  g = Gather(sh, one)  t = Concat <axis = 0> (i1, g, i1)  u = Unsqueeze(a, one)
                e = Expand(u, t)  h = ReduceSum <keepdims = 0> (e, one)""",
                one=ONE, i1=ONE,
            ),
            "Expand 'e' reads how many neurons there are",
        ),
        (
            hidden(
                """sh = Shape(a)  g = Gather(sh, one)  t = Concat <axis = 0> (m1, g)  b = MatMul(a, C)
                r = Reshape(b, t)  s = ReduceSum <keepdims = 1> (r, one)  h = Add(a, s)""",
                one=ONE, m1=-ONE, C=(6, 6),
            ),
            "ReduceSum 's' mixes neurons",
        ),
        (
            hidden(
                """sh = Shape(a)  n = Slice(sh, zero, one)  t = Concat <axis = 0> (n, i1, i6)
                r = Reshape(a, t)  other = Reshape(x6, t)  s = ReduceSum <keepdims = 0> (other, one)
                u = Squeeze(r, one)  h = Add(u, s)""",
                one=ONE, zero=ONE * 0, i1=ONE, i6=6 * ONE, x6=(6,),
            ),
            "Reshape 'r' has a target shape that others read too",
        ),
        (
            hidden(
                """sh = Shape(a)  g = Gather(sh, one)  t = Concat <axis = 0> (g, m1)  r = Reshape(c, t)
                m = ReduceMax <axes = [0], keepdims = 0> (r)  s = ReduceSum(m)  h = Mul(a, s)""",
                one=ONE, m1=-ONE, c=(24,),
            ),
            "Reshape 'r' reads how many neurons there are",
        ),
        (
            model(
                """g (float[5, 4] x) => (float[5, 3] y) {
                    [f] a = MatMul(x, A)  t = Gather(c, twice)  r = Reshape(a, t)  s = Softmax <axis = 0> (r)
                    h = Reshape(s, back)  [o] y = MatMul(h, B)
                }""",
                A=(4, 6), B=(6, 3), c=np.array([5, 6, 1]), twice=np.array([0, 1, 2]), back=np.array([5, 6]),
            ),
            None,
        ),
        (
            model(
                """g (float[6, 4] x) => (float[6, 3] y) {
                    [f] a = MatMul(x, A)  t = Gather(c, twice)  h = Reshape(a, t)  [o] y = MatMul(h, B)
                }""",
                A=(4, 6), B=(6, 3), c=np.array([6, 1]), twice=np.array([0, 0]),
            ),
            "Reshape 'h' has one number for two axes of its target shape",
        ),
        (
            hidden("sh = Shape(a)  g = Gather(sh, one)  k = Gather(c, g)  h = Mul(a, k)", one=ONE, c=(7,)),
            "Gather 'k' reads how many neurons there are",
        ),
        (hidden("s = ReduceSum(a, axes)  h = Div(a, s)", axes=np.zeros(0, np.int64)), "ReduceSum 's' mixes neurons"),
        (hidden("s = ReduceMean <axes: ints = []> (a)  h = Mul(a, s)"), "ReduceMean 's' mixes neurons"),
        (
            hidden("u = Unsqueeze(a, one)  h = Squeeze(u)", one=ONE),
            "Squeeze 'h' names no axes, so that it would drop that of a single neuron",
        ),
    ],
)  # fmt: skip
def test_number_of_neurons_in_disguise_is_refused(proto: ModelProto, reason: str | None) -> None:
    refused = {refusal.name: refusal.reason for refusal in find_layers(graph_of(proto))[1]}
    assert refused.get("f") == reason


# Types and shapes that the file states


def test_bias_is_of_the_type_that_the_node_reads() -> None:
    """Weights stored in half precision behind a Cast, no bias: the refit makes one."""
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            c1 = Cast <to = 1> (A)  [f] a = MatMul(x, c1)  h = Relu(a)  c2 = Cast <to = 1> (B)  [o] y = MatMul(h, c2)
        }""",
        A=normal(4, 6).astype(np.float16), B=normal(6, 3).astype(np.float16),
    )  # fmt: skip
    result = onnxdpp.prune(proto, {"x": normal(99, 4)}, keep=0.5, provider="cpu")
    types = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert (types.pop("A"), types.pop("B")) == (10, 10)
    assert set(types.values()) == {1}


def test_stated_shapes_of_cast_constants_go_with_them() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y) <float[4, 6] c1> {
            c1 = Cast <to = 1> (A)  [f] a = MatMul(x, c1)  h = Relu(a)  [o] y = MatMul(h, B)
        }""",
        A=normal(4, 6).astype(np.float16), B=(6, 3),
    )  # fmt: skip
    result = onnxdpp.prune(proto, {"x": normal(99, 4)}, keep=0.5, provider="cpu")
    assert "c1" not in {value.name for value in result.model.graph.value_info}


def test_shared_bounds_keep_their_type() -> None:
    proto = hidden(
        "p = Slice(a, lo, mid, axis)  q = Slice(a, mid, hi, axis)  s = Sigmoid(p)  h = Mul(s, q)",
        B=(3, 3), **{name: np.array([at], np.int32) for name, at in {"lo": 0, "mid": 3, "hi": 6, "axis": 1}.items()},
    )  # fmt: skip
    result = onnxdpp.prune(proto, {"x": normal(99, 4)}, keep=0.7, provider="cpu")
    assert result.report["layers"][0]["kept"] == 2


def test_integer_weights_behind_a_cast_are_refitted_as_floats() -> None:
    whole = np.round(4 * normal(6, 3)).astype(np.int8)
    text = """g (float[N, 4] x) => (float[N, 3] y) {{
        [f] a = MatMul(x, A)  h = Relu(a)  {cast}  [o] y = Gemm(h, w, b)
    }}"""
    data, options = {"x": normal(200, 4)}, {"keep": 0.5, "provider": "cpu"}
    weights: dict[str, Any] = {"A": (4, 6), "b": (3,)}
    cast = onnxdpp.prune(model(text.format(cast="w = Cast <to = 1> (i)"), i=whole, **weights), data, **options)
    plain = onnxdpp.prune(model(text.format(cast=""), w=whole.astype(np.float32), **weights), data, **options)
    assert cast.report["discrepancy"] == plain.report["discrepancy"]


def test_stated_shapes_of_casts_that_share_a_constant_go_too() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y, float[N, 6] z) <float[6] c1, float[6] c2> {
            [f] a = MatMul(x, A)  c1 = Cast <to = 1> (s)  h = Mul(a, c1)  [o] y = MatMul(h, B)
            c2 = Cast <to = 1> (s)  [p] q = MatMul(x, C)  z = Mul(q, c2)
        }""",
        A=(4, 6), B=(6, 3), C=(4, 6), s=normal(6).astype(np.float16),
    )  # fmt: skip
    result = onnxdpp.prune(proto, {"x": normal(99, 4)}, keep=0.5, provider="cpu")
    assert "c1" not in {value.name for value in result.model.graph.value_info}
    assert "c2" in {value.name for value in result.model.graph.value_info}

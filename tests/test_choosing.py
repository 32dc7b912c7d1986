"""Which weights are stored smaller, and why the others are not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Array, model, normal, run
from onnx import ModelProto, TensorProto, helper, numpy_helper
from test_storage import DECODING, dtype_of, encoded, held, masked, net, operators, same_bits

from onnxdpp.errors import ModelError, UsageError
from onnxdpp.graph import choosing, unpacking
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import load_model, save_model
from onnxdpp.graph.patterns import pattern, weights_of
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.storage import FORMS, STORAGES, VALUES, Stored, is_packed, pack, unpack
from onnxdpp.graph.walking import is_external, raw_bytes


def told(proto: ModelProto, folder: Path | None = None, **options: str) -> Stored:
    """What became of the first weight."""
    return pack(proto, folder, **options)[1][0]


def edges(keep: float) -> ModelProto:
    """784-500-500-10, with exactly a share of `keep` of the edges into each neuron."""

    def weight(n: int, m: int, seed: int) -> Array:
        rng = np.random.default_rng(seed)
        kept = np.argsort(rng.random((n, m)), axis=0) < round(keep * n)
        return np.where(kept, rng.standard_normal((n, m)), 0).astype(np.float32)

    return model(
        """g (float[N, 784] x) => (float[N, 10] y) {
            a = Gemm(x, W1, b1) h = Relu(a)
            c = Gemm(h, W2, b2) k = Relu(c)
            y = Gemm(k, W3, b3)
        }""",
        **{"W1": weight(784, 500, 1), "W2": weight(500, 500, 2), "W3": weight(500, 10, 3)},
        **{"b1": (500,), "b2": (500,), "b3": (10,)},
    )


@pytest.mark.parametrize(("keep", "most"), [(0.2, 0.24), (0.5, 0.54), (0.7, 0.74), (0.1, 0.13), (0.02, 0.03)])
def test_a_file_shrinks_with_what_was_kept(keep: float, most: float, tmp_path: Path) -> None:
    proto = edges(keep)
    packed, rows = pack(proto, None)
    save_model(packed, tmp_path / "packed.onnx")
    dense = 4 * (784 * 500 + 500 * 500 + 500 * 10)
    assert sum(row.dense_bytes for row in rows) == dense
    assert (tmp_path / "packed.onnx").stat().st_size <= most * dense
    x = normal(10_000, 784)
    assert same_bits(run(proto, {"x": x}), run(packed, {"x": x}))


@pytest.mark.parametrize(("storage", "values"), [("dense", "same"), ("packed", "float16"), ("sparse", "same")])
def test_a_form_is_taken_only_where_asked_for(storage: str, values: str) -> None:
    row = told(net(0.05), storage=storage, values=values)
    assert row.form == {"dense": "dense", "packed": "gaps", "sparse": "sparse"}[storage]
    assert (row.reason == "dense was asked for") == (storage == "dense")
    assert row.values == values


def test_auto_takes_a_sparse_initializer_where_operators_cannot_decode() -> None:
    assert told(net(0.05, opset=17)).form == "gaps"
    assert told(net(0.05, opset=10)).form == "sparse"
    assert told(net(0.02, (32, 32), opset=17)).form == "sparse"  # the operators would take as much as the weight


def test_auto_takes_a_sparse_initializer_only_where_it_is_clearly_smaller() -> None:
    proto = net(0.03, (48, 48))
    assert 0.9 * told(proto, storage="packed").bytes < told(proto, storage="sparse").bytes
    assert told(proto, storage="sparse").bytes < told(proto, storage="packed").bytes
    assert told(proto).form == "gaps"


@pytest.mark.parametrize("opset", [9, 10])
def test_an_old_opset_says_what_to_do(opset: int) -> None:
    row = told(net(0.5, opset=opset))
    assert row.form == "dense"
    assert row.reason == f"opset {opset} is too old for the decode, which needs 11: convert the model first"
    assert told(net(0.05, opset=opset), storage="packed").reason == row.reason


def test_an_old_ir_version_has_no_sparse_initializers() -> None:
    row = told(net(0.05, opset=9, ir_version=4), storage="sparse")
    assert row.reason == "IR version 4 has no sparse initializers; they came with 5"
    assert told(net(0.05, opset=9, ir_version=5), storage="sparse").form == "sparse"
    assert told(net(0.05, opset=11, ir_version=3)).reason.startswith("IR version 3 lists it among the graph inputs")


def test_small_weights_and_those_with_few_zeros_are_not_mentioned() -> None:
    assert pack(net(0.5, (10, 20)), None)[1] == []
    assert pack(net(0.95), None)[1] == []
    assert pack(net(1.0), None)[1] == []
    assert len(pack(net(0.85), None)[1]) == 1


def test_a_weight_that_would_save_little_stays_dense() -> None:
    row = told(net(0.89, (100, 100)))
    assert row.form == "dense"
    assert "of its 40000 bytes, which saves less than 10%" in row.reason
    assert row.bytes == row.dense_bytes == 40_000
    assert "saves less than 1024 bytes" in told(net(0.3, (20, 20)), storage="packed").reason


def test_the_table_must_pay_for_itself() -> None:
    def chain(length: int) -> ModelProto:
        weights = {f"W{n}": masked(76, 76, keep=0.6, seed=n, dtype=np.float16) for n in range(length)}
        body = " ".join(f"h{n + 1} = MatMul(h{n}, W{n})" for n in range(length))
        return model(f"g (float16[N, 76] h0) => (float16[N, 76] h{length}) {{ {body} }}", **weights)

    alone, (row,) = pack(chain(1), None, storage="packed")
    assert row.reason.startswith("packing would save less than the table takes")
    assert encoded(alone) == encoded(chain(1))
    packed, rows = pack(chain(2), None, storage="packed")
    assert {row.form for row in rows} == {"packed"}
    assert sum(tensor.name.endswith("/table") for tensor in packed.graph.initializer) == 1
    assert packed.ByteSize() < chain(2).ByteSize() - choosing.LEAST


def reasons(proto: ModelProto) -> dict[str, str]:
    packed, rows = pack(proto, None)
    check_model(packed, "the packed model")
    return {row.name: row.reason for row in rows if row.form == "dense"}


def test_what_others_may_see_stays_dense() -> None:
    listed = net()
    listed.graph.input.append(helper.make_tensor_value_info("W", 1, [64, 48]))
    assert reasons(listed) == {"W": "it is also a graph input, so that callers may override it"}
    given_out = net()
    given_out.graph.output.append(helper.make_tensor_value_info("W", 1, [64, 48]))
    assert reasons(given_out) == {"W": "it is a graph output"}
    unread = net()
    unread.graph.initializer.append(numpy_helper.from_array(masked(64, 64, keep=0.1), "alone"))
    assert reasons(unread) == {"alone": "nobody reads it"}
    annotated = net()
    note = annotated.graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="W")
    assert reasons(annotated) == {"W": "a quantization annotation names it"}
    trained = net()
    trained.training_info.add().update_binding.add(key="W", value="new")
    assert pack(trained, None)[1][0].reason == "training information names it"


def test_weights_in_bodies_stay_dense() -> None:
    proto = model(
        """g (float[N, 96] x, bool c) => (float[N, 64] y) {
            y = If (c) <then_branch = t () => (float[N, 64] u) { u = MatMul(x, V) },
                        else_branch = e () => (float[N, 64] v) { v = MatMul(x, V) }>
        }"""
    )
    for attribute in proto.graph.node[0].attribute:
        attribute.g.initializer.append(numpy_helper.from_array(masked(96, 64, keep=0.2), "V"))
    assert [row.reason for row in pack(proto, None)[1]] == ["it lies in the body of a node"] * 2
    assert encoded(pack(proto, None)[0]) == encoded(proto)


def test_weights_in_constant_nodes_stay_dense() -> None:
    proto = net()
    constant = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(masked(64, 48, keep=0.2)))
    del proto.graph.initializer[0]
    proto.graph.node.insert(0, constant)
    assert reasons(proto) == {"W": "it stands in a Constant node, and only initializers are packed"}


def test_other_element_types_stay_dense() -> None:
    proto = net()
    small = helper.make_tensor("Q", TensorProto.INT4, [64, 64], np.eye(64, dtype=np.int8).ravel())
    proto.graph.initializer.append(small)
    words = helper.make_tensor("S", TensorProto.STRING, [1024], [b""] * 1024)
    proto.graph.initializer.append(words)
    assert [(row.name, row.reason) for row in pack(proto, None)[1]][1:] == [("Q", "int4 is not packed")]


def test_functions_that_shadow_operators_forbid_the_decode() -> None:
    proto = net(0.05)
    proto.functions.append(
        helper.make_function("", "Gather", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], proto.opset_import)
    )
    assert told(proto, storage="packed").reason == "the model has functions under the names of ONNX's own operators"


@pytest.mark.parametrize(("keep", "form"), [(0.5, "packed"), (0.05, "gaps")])
def test_what_onnxruntime_would_not_fold_stays_dense(keep: float, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = net(keep, (101, 65), W=masked(101, 65, keep=keep, dtype=np.float16))
    size = 4 * 6568 if form == "packed" else 4 * 6565  # positions are int32, of whole bytes of the mask
    monkeypatch.setattr(choosing, "MAX_FOLDED", size)
    assert told(proto, storage="packed").form == form
    monkeypatch.setattr(choosing, "MAX_FOLDED", 4 * 6565 - 1)
    row = told(proto, storage="packed")
    assert row.form == "dense"
    assert row.reason == f"its decode takes {4 * 6568} bytes at once, and onnxruntime folds {4 * 6565 - 1}"


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Storage 'zip' is none of dense, packed, sparse, auto\."):
        pack(net(), None, storage="zip")
    with pytest.raises(UsageError, match=r"Values 'int8' is none of same, float16\."):
        pack(net(), None, values="int8")


# Names


def test_names_clash_with_nothing() -> None:
    weight = masked(64, 48, keep=0.3)
    proto = model(
        """g (float[N, 64] x) => (float[N, 48] y, float[N, 48] z) {
            [onnxdpp/packed/table] a = MatMul(x, W)
            ["W/packed_2/place"] y = Relu(a)
            z = If (c) <then_branch = t () => (float[N, 48] u) { u = Neg(a) },
                       else_branch = e () => (float[N, 48] v) { v = Abs(a) }>
        }""".replace("[onnxdpp/packed/table]", "").replace('["W/packed_2/place"]', ""),
        W=weight,
        c=np.array(True),
    )
    proto.graph.node[0].name = "onnxdpp/packed/table"
    proto.graph.node[1].name = "W/packed/place"
    body = proto.graph.node[2].attribute[0].g
    body.node[0].output[0] = body.output[0].name = "W/packed_2/values"
    packed, (row,) = pack(proto, None)
    assert row.form == "packed"
    check_model(packed, "the packed model")
    names = [node.name for node in packed.graph.node if node.name]
    assert len(set(names)) == len(names)
    assert {name.split("/")[1] for name in names if name.startswith("W/packed_")} == {"packed_3"}
    assert any(tensor.name == "onnxdpp/packed_2/table" for tensor in packed.graph.initializer)
    feed = {"x": normal(5, 64)}
    assert same_bits(run(proto, feed), run(packed, feed))
    assert encoded(unpack(packed, None)[0]) == encoded(proto)


def test_a_weight_may_be_named_like_what_all_share() -> None:
    proto = model("g (float[N, 64] x) => (float[N, 48] y) { y = MatMul(x, onnxdpp) }", onnxdpp=masked(64, 48, keep=0.3))
    packed, (row,) = pack(proto, None)
    assert row.form == "packed"
    check_model(packed, "the packed model")
    feed = {"x": normal(5, 64)}
    assert same_bits(run(proto, feed), run(packed, feed))
    assert encoded(unpack(packed, None)[0]) == encoded(proto)


# Values as float16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("keep", "form"), [(0.5, "packed"), (0.05, "gaps")])
def test_float16_values_are_rounded_once(dtype: type, keep: float, form: str, tmp_path: Path) -> None:
    weight = masked(100, 127, keep=keep, dtype=dtype)
    weight.flat[np.flatnonzero(weight)[0]] = 1e-9  # becomes zero
    proto = held(weight)
    packed, (row,) = pack(proto, None, values="float16")
    narrow = weight.astype(np.float16).astype(dtype)
    assert (row.form, row.values, row.reason) == (form, "float16", "")
    assert row.nonzero == np.count_nonzero(narrow) == np.count_nonzero(weight) - 1
    assert row.max_error == pytest.approx(np.abs(narrow.astype(np.float64) - weight).max(), rel=1e-15, abs=0)
    assert row.bytes < 0.8 * told(proto).bytes
    assert run(packed, {})[0].tobytes() == narrow.tobytes()
    back, (undone,) = unpack(packed, None)
    assert undone.values == "float16"
    assert numpy_helper.to_array(back.graph.initializer[0]).tobytes() == narrow.tobytes()
    assert encoded(pack(packed, None, values="float16")[0]) == encoded(packed)
    assert encoded(unpack(pack(back, None, values="float16")[0], None)[0]) == encoded(back)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("float32", 70000, "70000 does not fit into float16, so that it keeps float32"),
        ("float32", np.inf, "it holds NaN or infinity, so that it keeps its type"),
        ("float64", np.nan, "it holds NaN or infinity, so that it keeps its type"),
        ("int32", 3, "int32 is not narrowed to float16"),
        ("float16", 3, ""),
    ],
)
def test_values_that_float16_does_not_hold_keep_their_type(kind: str, value: float, reason: str) -> None:
    weight = masked(100, 100, keep=0.3, dtype=dtype_of(kind))
    weight[0, 0] = value
    proto = held(weight)
    packed, (row,) = pack(proto, None, values="float16")
    assert (row.form, row.values, row.reason, row.max_error) == ("packed", "same", reason, 0)
    assert encoded(unpack(packed, None)[0]) == encoded(proto)


def test_sparse_initializers_keep_their_type() -> None:
    weight = masked(100, 100, keep=0.1)
    weight[0, 0] = 1e-9  # float16 would make it zero
    row = told(held(weight), storage="sparse", values="float16")
    assert (row.form, row.values, row.max_error) == ("sparse", "same", 0)
    assert (row.nonzero, row.reason) == (np.count_nonzero(weight), "a sparse initializer keeps its type")


def test_sparse_initializers_of_next_to_nothing_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.zeros((200, 200), np.float32)
    weight[0, :12] = 1
    assert told(held(weight), storage="sparse").form == "sparse"
    monkeypatch.setattr(unpacking, "MAX_FOLDED", 100_000)
    assert told(held(weight), storage="sparse").reason == "144 bytes are too few for so large a weight"
    weight[1, :2] = 1
    packed, (row,) = pack(held(weight), None, storage="sparse")
    assert row.form == "sparse"
    assert encoded(unpack(packed, None)[0]) == encoded(held(weight))


# Patterns


def grouped(kept: int, group: int, n: int = 64, m: int = 48) -> Array:
    """(n, m): exactly `kept` of every `group` consecutive rows are not zero, in each column."""
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((n // group, group, m)), axis=1).reshape(n, m)
    return np.where(order < kept, rng.standard_normal((n, m)), 0).astype(np.float32)


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (4, 8), (1, 8), (8, 16)])
def test_a_pattern_along_the_inputs_is_found(kept: int, group: int) -> None:
    name = f"{kept}:{group}"
    row = told(net(W=grouped(kept, group)))
    assert (row.form, row.pattern) == ("dense", name)
    assert row.reason == f"its pattern {name} is left to hardware that knows it; storage packed packs it"
    asked = told(net(shape=(256, 48), W=grouped(kept, group, 256)), storage="packed")
    assert (asked.form in ("packed", "gaps"), asked.pattern) == (True, name)


def test_one_group_of_one_output_breaks_a_pattern() -> None:
    weight = grouped(2, 4)
    weight[:4, 0] = 1
    assert told(net(W=weight)).pattern == ""
    assert told(net(W=weight)).form == "packed"


def test_the_inputs_behind_the_last_whole_group_count_too() -> None:
    weight = np.concatenate([grouped(2, 4), masked(3, 48, keep=1)])
    assert told(net(shape=(67, 48), W=weight)).pattern == "4:8"
    weight[-1] = 0
    assert told(net(shape=(67, 48), W=weight)).pattern == "2:4"


def test_a_pattern_across_the_inputs_is_none() -> None:
    assert told(net(W=np.ascontiguousarray(grouped(2, 4, 48, 64).T))).pattern == ""


def test_a_pattern_by_chance_is_none() -> None:
    weight = masked(64, 48, keep=0.01)
    assert np.count_nonzero(weight.reshape(16, 4, 48), axis=1).max() == 1
    assert told(net(W=weight)).pattern == ""


def test_half_of_sixteen_inputs_is_no_pattern() -> None:
    weight = np.take_along_axis(normal(16, 96), np.argsort(normal(16, 96, seed=2), axis=0), axis=0)
    weight[np.argsort(np.abs(weight), axis=0)[:8], np.arange(96)] = 0
    row = told(net(shape=(16, 96), W=weight))
    assert (row.form != "dense", row.pattern) == (True, "")


def test_patterns_of_convolutions_lie_along_the_patch() -> None:
    weight = grouped(2, 4, 16 * 9, 32).T.reshape(32, 16, 3, 3)
    proto = model(
        "g (float[N, 16, 8, 8] x) => (float[N, 32, 6, 6] y) { y = Conv(x, W) }", W=np.ascontiguousarray(weight)
    )
    assert told(proto).pattern == "2:4"
    weight = grouped(2, 4, 64, 48)
    proto = model("g (float[N, 64] x) => (float[N, 48] y) { y = Gemm<transB = 1>(x, W) }", W=weight.T.copy())
    assert told(proto).pattern == "2:4"
    kernel = grouped(2, 4, 16 * 9, 32)
    transposed = model(
        "g (float[N, 16, 8, 8] x) => (float[N, 32, 10, 10] y) { y = ConvTranspose(x, W) }", W=(16, 32, 3, 3)
    )
    part = weights_of(Graph(transposed))["W"]
    assert pattern(part.laid_out(kernel) != 0, part) == "2:4"


# External data


def stored_outside(folder: Path, keep: float = 0.2) -> ModelProto:
    proto = edges(keep)
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return load_model(folder / "model.onnx")


@pytest.mark.parametrize("storage", ["packed", "sparse"])
@pytest.mark.parametrize("spilled", [False, True])
def test_external_data_are_packed_and_unpacked(storage: str, spilled: bool, tmp_path: Path) -> None:
    proto = stored_outside(tmp_path)
    scratch = Scratch() if spilled else None
    packed, rows = pack(proto, tmp_path, storage=storage, scratch=scratch)
    assert {row.form for row in rows} == {storage}
    if spilled:
        large = [tensor for tensor in packed.graph.initializer if raw_bytes(tensor) > 2048]
        assert all(is_external(tensor) for tensor in large)
        assert sum(tensor.name.endswith(("/values", "/codes")) for tensor in large) == (5 if storage == "packed" else 0)
        assert all(is_external(tensor) for tensor in large)
    (tmp_path / "out").mkdir()
    save_model(packed, tmp_path / "out" / "packed.onnx", folder=tmp_path)
    written = load_model(tmp_path / "out" / "packed.onnx")
    restored, _ = unpack(written, tmp_path / "out", scratch=scratch)
    save_model(restored, tmp_path / "out" / "dense.onnx", folder=tmp_path / "out")
    original, back = onnx.load(tmp_path / "model.onnx"), onnx.load(tmp_path / "out" / "dense.onnx")
    for old, new in zip(original.graph.initializer, back.graph.initializer, strict=True):
        assert (old.name, old.dims, old.raw_data) == (new.name, new.dims, new.raw_data)
    feed = {"x": normal(4, 784)}
    assert same_bits(run(original, feed), run(onnx.load(tmp_path / "out" / "packed.onnx"), feed))


def test_external_data_without_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Initializer 'W1' lies in external data, and nothing says in which folder"):
        pack(stored_outside(tmp_path), None)


# Order and determinism


def test_nodes_in_any_order_are_no_hindrance() -> None:
    proto = edges(0.2)
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    packed, rows = pack(proto, None)
    assert {row.form for row in rows} == {"packed"}
    assert encoded(unpack(packed, None)[0]) == encoded(proto)
    x = normal(3, 784)
    assert same_bits(run(edges(0.2), {"x": x}), run(packed, {"x": x}))


def test_packing_another_way_starts_from_the_dense_model() -> None:
    proto = edges(0.05)
    packed = {storage: encoded(pack(proto, None, storage=storage)[0]) for storage in STORAGES}
    for first in STORAGES:
        for second in STORAGES:
            before = onnx.load_from_string(packed[first])
            assert encoded(pack(before, None, storage=second)[0]) == packed[second]
    assert is_packed(onnx.load_from_string(packed["sparse"]))
    assert not is_packed(onnx.load_from_string(packed["dense"]))
    assert packed["dense"] == encoded(proto)


def test_names_of_forms_and_options() -> None:
    assert FORMS == ("dense", "packed", "gaps", "sparse")
    assert VALUES == ("same", "float16")
    assert not set(operators(edges(0.2))) & DECODING

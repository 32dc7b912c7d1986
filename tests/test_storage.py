"""Packing masked weights: the same answers from fewer bytes, and back again byte by byte."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from models import Array, add_unknown_field, decorated, model, normal, run
from onnx import ModelProto, TensorProto, helper, numpy_helper
from test_real_models import cases, feeds

from onnxdpp.graph import choosing
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.codes import bits_of, coded, coded_bytes, decoded
from onnxdpp.graph.decoders import largest_output
from onnxdpp.graph.external import has_external_data, tensor_array
from onnxdpp.graph.model import load_model, save_model
from onnxdpp.graph.rewriting import fill
from onnxdpp.graph.storage import STORAGES, is_packed, pack, unpack

PACKING = ("packed", "sparse", "auto")
KINDS = (
    "float32",
    "float16",
    "float64",
    "bfloat16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
)


def masked(*shape: int, keep: float, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Standard normal entries of which a share of `keep` stays, drawn one by one."""
    rng = np.random.default_rng(seed)
    array = (10 * rng.standard_normal(shape)).astype(dtype)
    array[rng.random(shape) >= keep] = 0
    return array


def net(keep: float = 0.3, shape: tuple[int, int] = (64, 48), *, opset: int = 17, **options: Any) -> ModelProto:
    """One Gemm with a masked weight W."""
    weight = options.pop("W", None)
    return model(
        f"g (float[N, {shape[0]}] x) => (float[N, {shape[1]}] y) {{ y = Gemm(x, W, b) }}",
        opset=opset,
        **{"W": masked(*shape, keep=keep) if weight is None else weight, "b": (shape[1],), **options},
    )


def held(array: Array, *, opset: int = 17) -> ModelProto:
    """A model that gives out a constant: as it is, or, of bfloat16, as float."""
    tensor = numpy_helper.from_array(array, "W")
    kind = TensorProto.FLOAT if tensor.data_type == TensorProto.BFLOAT16 else tensor.data_type
    same = kind == tensor.data_type
    node = helper.make_node("Identity", ["W"], ["y"]) if same else helper.make_node("Cast", ["W"], ["y"], to=kind)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", kind, array.shape)], [tensor])
    imports = [helper.make_opsetid("", opset)]
    ir_version = max(8, helper.find_min_ir_version_for(imports))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def dtype_of(kind: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, kind) if kind == "bfloat16" else kind)


def encoded(proto: ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


def same_bits(old: list[Any], new: list[Any]) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(old, new, strict=True))


def optimized(proto: ModelProto, folder: Path, level: Any, **entries: str) -> ModelProto:
    """What onnxruntime makes of a model when a session is made."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def operators(proto: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


DECODING = {"Gather", "Reshape", "Slice", "CumSum", "Mul", "ConstantOfShape", "ScatterElements"}
BASIC = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


# The codes


@st.composite
def entry_arrays(draw: st.DrawFn) -> Array:
    """Entries of any bits, with any share of them zero, and runs of zeros longer than a byte counts."""
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]))
    size, density = draw(st.integers(1, 3000)), draw(st.sampled_from([0, 0.001, 0.01, 0.1, 0.5, 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    entries = rng.integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)
    entries[rng.random(size) >= density] = 0
    return entries


@pytest.mark.parametrize("form", ["packed", "gaps"])
@given(entries=entry_arrays())
def test_codes_give_back_every_bit(form: str, entries: Array) -> None:
    codes, values = coded(form, entries)
    assert decoded(form, codes, values, len(entries)).tobytes() == entries.tobytes()
    assert codes.nbytes + values.nbytes == coded_bytes(form, entries, entries.dtype.itemsize)


def test_distances_take_two_bytes_where_one_would_need_more_steps() -> None:
    entries = np.zeros(200_000, np.uint32)
    entries[::2000] = 7
    codes, values = coded("gaps", entries)
    assert codes.dtype == np.uint16
    assert len(codes) == len(values) == 100
    assert coded("gaps", entries[:100])[0].dtype == np.uint8


@pytest.mark.parametrize(("keep", "smaller"), [(0.02, "gaps"), (0.10, "gaps"), (0.15, "packed"), (0.5, "packed")])
def test_distances_are_smaller_than_the_mask_below_one_entry_in_eight(keep: float, smaller: str) -> None:
    entries = bits_of(masked(100, 1000, keep=keep))
    sizes = {form: coded_bytes(form, entries, 4) for form in ("packed", "gaps")}
    assert min(sizes, key=sizes.__getitem__) == smaller


@pytest.mark.parametrize(
    ("form", "codes", "values", "reason"),
    [
        ("packed", [0b1000_0000, 0], [0, 7], "a mask of 8 entries has 1 bytes, not 2"),
        ("packed", [0b1100_0000], [0, 7], "asks for 2 values after the zero, there are 2 in all"),
        ("packed", [0b1000_0000], [7, 7], "do not begin with zero"),
        ("gaps", [1, 1], [7], "2 distances for 1 values"),
        ("gaps", [], [], "0 distances for 0 values"),
        ("gaps", [4, 4], [7, 7], "lead to entry 8 of 8"),
        ("gaps", [4, 0], [7, 7], "two values have one place"),
    ],
)
def test_codes_that_do_not_fit_are_refused(form: str, codes: list[int], values: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decoded(form, np.array(codes, np.uint8), np.array(values, np.uint32), 8)


# There and back


@st.composite
def models_with_zeros(draw: st.DrawFn) -> ModelProto:
    """Some constants of any type, shape and share of zeros, each given out by an Identity."""
    nodes, outputs, tensors = [], [], []
    for number in range(draw(st.integers(1, 4))):
        dtype = dtype_of(draw(st.sampled_from(KINDS)))
        shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
        assume(np.prod(shape) <= 60_000)
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        array = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape).copy()
        array[rng.random(shape) >= draw(st.sampled_from([0, 0.001, 0.03, 0.2, 0.5, 0.9, 1]))] = 0
        tensors.append(numpy_helper.from_array(array, f"W{number}"))
        nodes.append(helper.make_node("Identity", [f"W{number}"], [f"y{number}"]))
        outputs.append(helper.make_tensor_value_info(f"y{number}", tensors[-1].data_type, shape))
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", draw(st.integers(11, 20)))], ir_version=8)


@given(proto=models_with_zeros(), storage=st.sampled_from(STORAGES))
def test_unpacking_what_was_packed_gives_the_same_bytes(proto: ModelProto, storage: str) -> None:
    before = encoded(proto)
    packed, told = pack(proto, None, storage=storage)
    assert encoded(proto) == before
    restored, undone = unpack(packed, None)
    assert encoded(restored) == before
    assert [row.name for row in undone] == [row.name for row in told if row.form != "dense"]
    assert encoded(pack(packed, None, storage=storage)[0]) == encoded(packed)
    assert is_packed(packed) == bool(undone)
    assert packed.ByteSize() <= proto.ByteSize()


@given(proto=models_with_zeros(), storage=st.sampled_from(STORAGES))
def test_rows_add_up_to_the_file(proto: ModelProto, storage: str) -> None:
    packed, told = pack(proto, None, storage=storage)
    table = choosing.TABLE_BYTES if any(row.form == "packed" for row in told) else 0
    saved = sum(row.dense_bytes - row.bytes for row in told) - table
    assert proto.ByteSize() - packed.ByteSize() == pytest.approx(saved, abs=200)


def test_everything_else_of_a_file_stays(tmp_path: Path) -> None:
    proto = decorated(W1=masked(4, 600, keep=0.2), b1=(600,), W2=masked(600, 5, keep=0.05))
    del proto.graph.value_info[:2]  # they say six where there are 600
    for tensor in proto.graph.initializer:
        add_unknown_field(tensor)
    for storage in PACKING:
        packed, told = pack(proto, None, storage=storage)
        assert {row.form for row in told} - {"dense"}
        assert encoded(unpack(packed, None)[0]) == encoded(proto)
        save_model(packed, tmp_path / "packed.onnx", force=True)
        assert encoded(load_model(tmp_path / "packed.onnx")) == encoded(packed)


def test_typed_data_come_back_as_raw_data() -> None:
    array = masked(40, 30, keep=0.2)
    proto = net(W=array, shape=(40, 30))
    proto.graph.initializer[0].CopyFrom(helper.make_tensor("W", TensorProto.FLOAT, array.shape, array.ravel()))
    back = unpack(pack(proto, None)[0], None)[0]
    assert back.graph.initializer[0].raw_data == array.tobytes()


def test_every_bit_pattern_survives() -> None:
    array = np.zeros((64, 64), np.float32)
    bits = array.view(np.uint32)
    bits[::2, ::3] = 0x80000000  # -0.0
    bits[1, :9] = [1, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F812345, 0xFFC12345, 0x007FFFFF, 0x3F800000]
    for storage, form in (("packed", "packed"), ("sparse", "sparse")):
        packed, (told,) = pack(held(array), None, storage=storage)
        assert (told.form, told.nonzero) == (form, np.count_nonzero(bits))
        assert run(packed, {})[0].tobytes() == array.tobytes()
        assert unpack(packed, None)[0].graph.initializer[0].raw_data == array.tobytes()


# What onnxruntime makes of it


def newest() -> int:
    """The newest opset that both onnx and onnxruntime know."""
    for opset in range(onnx.defs.onnx_opset_version(), 17, -1):
        with suppress(Exception):
            run(held(np.zeros(1, np.float32), opset=opset), {})
            return opset
    return 17


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 18, newest()])
@pytest.mark.parametrize("kind", KINDS)
def test_sessions_fold_the_decode_to_the_same_bits(kind: str, opset: int, tmp_path: Path) -> None:
    for keep, columns, form in [(0.5, 128, "packed"), (0.4, 127, "packed"), (0.03, 128, "gaps"), (0.0, 128, "gaps")]:
        proto = held(masked(100, columns, keep=keep, dtype=dtype_of(kind)), opset=opset)
        packed, (told,) = pack(proto, None, storage="packed")
        if kind == "bfloat16" and opset < 13:
            assert told.reason.startswith(f"opset {opset} is too old for the decode of bfloat16, which needs 13")
            continue
        assert told.form == ("packed" if kind == "bfloat16" else form)
        check_model(packed, "the packed model")
        onnx.checker.check_model(packed, full_check=True)
        assert same_bits(run(proto, {}), run(packed, {}))
        for level in (BASIC, ALL):
            assert not set(operators(optimized(packed, tmp_path, level))) & DECODING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.03, 0.0])
def test_sessions_read_sparse_initializers(kind: str, keep: float) -> None:
    proto = held(masked(100, 127, keep=keep, dtype=dtype_of(kind)), opset=18)
    packed, (told,) = pack(proto, None, storage="sparse")
    assert told.form == "sparse"
    assert not packed.graph.initializer
    check_model(packed, "the packed model")
    onnx.checker.check_model(packed)
    assert same_bits(run(proto, {}), run(packed, {}))


CONSUMERS = {
    "MatMul": ("g (float[N, 96] x) => (float[N, 64] y) { y = MatMul(x, W) }", (96, 64), (96,)),
    "Gemm": ("g (float[N, 96] x) => (float[N, 64] y) { y = Gemm(x, W) }", (96, 64), (96,)),
    "Gemm, transB": ("g (float[N, 96] x) => (float[N, 64] y) { y = Gemm<transB = 1>(x, W) }", (64, 96), (96,)),
    "Conv": ("g (float[N, 9, 8, 8] x) => (float[N, 24, A, B] y) { y = Conv(x, W) }", (24, 9, 5, 5), (9, 8, 8)),
    "ConvTranspose": (
        "g (float[N, 9, 8, 8] x) => (float[N, 24, A, B] y) { y = ConvTranspose(x, W) }",
        (9, 24, 5, 5),
        (9, 8, 8),
    ),
    "captured": (
        """g (float[N, 96] x, bool c) => (float[N, 64] y) {
            y = If (c) <then_branch = t () => (float[N, 64] u) { u = MatMul(x, W) },
                        else_branch = e () => (float[N, 64] v) { w = Neg(W) v = MatMul(x, w) }>
        }""",
        (96, 64),
        (96,),
    ),
}


@pytest.mark.parametrize("case", CONSUMERS)
@pytest.mark.parametrize(("storage", "keep"), [("packed", 0.4), ("packed", 0.05), ("sparse", 0.05)])
@pytest.mark.parametrize("half", [False, True])
def test_readers_of_weights_run_as_if_they_were_dense(
    case: str, storage: str, keep: float, half: bool, tmp_path: Path
) -> None:
    text, shape, row = CONSUMERS[case]
    dtype = np.float16 if half else np.float32
    proto = model(text.replace("float[", "float16[") if half else text, W=masked(*shape, keep=keep, dtype=dtype))
    packed, (told,) = pack(proto, None, storage=storage)
    assert told.form == (storage if storage == "sparse" or keep > 0.1 else "gaps")
    given = {"x": normal(10, *row, dtype=dtype)} | ({"c": np.array(True)} if case == "captured" else {})
    assert same_bits(run(proto, given), run(packed, given))
    for level in (BASIC, ALL):
        left = operators(optimized(packed, tmp_path, level))
        assert left == operators(optimized(proto, tmp_path, level))
        assert not set(left) & DECODING


@pytest.mark.parametrize("keep", [0.5, 0.05])
def test_a_weight_at_the_cap_folds_and_one_above_does_not(keep: float, tmp_path: Path) -> None:
    proto = net(keep, (101, 64))
    packed, (told,) = pack(proto, None, storage="packed")
    cap = largest_output(told.form, 101 * 64, 4)
    for limit, folds in ((cap, True), (cap - 1, False)):
        key = "optimization__constant_folding_max_output_size_in_bytes"
        left = operators(optimized(packed, tmp_path, BASIC, **{key: str(limit)}))
        assert (left == operators(optimized(proto, tmp_path, BASIC))) == folds


@pytest.mark.parametrize("file", cases(lambda file: True))
def test_real_models_with_masked_weights(file: str, shared_models: Path) -> None:
    proto = load_model(shared_models / file)
    folder = (shared_models / file).parent
    weights = {part.input[1] for part in proto.graph.node if part.op_type in ("Gemm", "MatMul", "Conv")}
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            array = np.array(tensor_array(tensor, folder))
            array[rng.random(array.shape) < 0.5] = 0
            fill(tensor, array)
    for storage in PACKING:
        packed, told = pack(proto, folder, storage=storage)
        check_model(packed, file)
        assert encoded(unpack(packed, folder)[0]) == encoded(proto)
        if any(row.form != "dense" for row in told) and not has_external_data(proto):
            rows = feeds(proto, file)
            assert same_bits(run(proto, rows), run(packed, rows))

"""Calibration data: what is read, in which order, and what each bad input is told."""

import errno
import io
import os
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxdpp.errors import DataError, OnnxdppError, UsageError
from onnxdpp.graph import arrays as arrays_module
from onnxdpp.graph import batches as batches_module
from onnxdpp.graph.batches import Batches, InputSpec, input_specs, open_batches

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
X = InputSpec("x", F32, ("batch", 3))
MASK = InputSpec("mask", I64, ("batch",))
STATE = (InputSpec("x", F32, ("batch", 2)), InputSpec("h", F32, (2, "batch", 3)), InputSpec("sr", I64, ()))


def rows(count: int, width: int = 3) -> NDArray[np.float32]:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def read(batches: Batches, name: str = "x") -> NDArray[Any]:
    return np.concatenate([batch.feeds[name] for batch in batches])


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def raw_npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def raw_npz(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def refusal(kind: type[OnnxdppError], source: Any, *inputs: InputSpec, **options: Any) -> str:
    """Return the one line that opening and passing over the data ends with."""
    with pytest.raises(kind) as caught:
        for _ in open_batches(source, inputs or (X,), **options):
            pass
    message = str(caught.value)
    assert message.isprintable()
    return message


# The inputs of a model


def model(*inputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", list(inputs), []))


def test_input_specs_of_text_model_leave_out_initializers() -> None:
    parsed = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x, float[3] b) => (float[N, 3] y)'
        " <float[3] b = {1.0, 2.0, 3.0}> { y = Add(x, b) }"
    )
    assert input_specs(parsed) == (InputSpec("x", F32, ("N", 3)),)


def test_input_specs_leave_out_sparse_initializers() -> None:
    proto = model(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [2])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    assert input_specs(proto) == ()


@pytest.mark.parametrize("symbol", ["?", "", "None"])
def test_input_specs_take_placeholder_symbols_for_unknown(symbol: str) -> None:
    spec = input_specs(model(helper.make_tensor_value_info("x", TensorProto.FLOAT, [symbol, 3])))[0]
    assert spec.shape == (None, 3)


def test_input_specs_take_a_negative_dimension_for_unknown() -> None:
    spec = input_specs(model(helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3])))[0]
    assert spec.shape == (None, 3)


def test_input_specs_without_shape_have_unknown_rank() -> None:
    assert input_specs(model(helper.make_tensor_value_info("x", TensorProto.FLOAT, None)))[0].shape is None


def test_input_specs_of_a_scalar_have_rank_zero() -> None:
    assert input_specs(model(helper.make_tensor_value_info("x", TensorProto.INT64, [])))[0].shape == ()


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.BFLOAT16, TensorProto.COMPLEX64, TensorProto.INT4])
def test_input_specs_of_a_type_that_cannot_be_fed_have_no_dtype(kind: int) -> None:
    assert input_specs(model(helper.make_tensor_value_info("x", kind, [2])))[0].dtype is None


def test_input_specs_of_a_sequence_have_no_dtype() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    assert input_specs(model(sequence)) == (InputSpec("s", None, None),)


def test_open_refuses_an_input_that_cannot_be_fed() -> None:
    message = refusal(DataError, "random:4", InputSpec("text", None, ("batch",)))
    assert message.endswith("Expected: text of a type that cannot be fed (batch,).")


def test_open_refuses_a_model_without_inputs() -> None:
    with pytest.raises(DataError, match="no inputs"):
        open_batches("random:4", ())


# Rows or runs


@pytest.mark.parametrize(
    "shapes",
    [
        [("batch", 3), ("batch",)],
        [("a", 3), ("b", "c")],
        [(None, 3, None, None)],
        [(4, 3), (4,)],
        [None],
    ],
)
def test_batches_are_row_wise_where_first_dimensions_agree(shapes: list[Any]) -> None:
    inputs = [InputSpec(f"x{i}", F32, shape) for i, shape in enumerate(shapes)]
    data = {spec.name: np.ones((4, *[3 for _ in (spec.shape or (0, 0))[1:]]), F32) for spec in inputs}
    assert open_batches(data, inputs).row_wise


@pytest.mark.parametrize(
    "shapes",
    [
        [("batch", 3), ()],
        [("batch", 3), (2, "batch", 3)],
        [("batch", 3), (1, 3)],
        [(2, 3), (3, 3)],
        [("nodes", 3), ("nodes", "nodes")],
        [("batch", 3), ("layers", "batch", 3)],
    ],
)
def test_batches_are_runs_where_first_dimensions_differ(shapes: list[Any]) -> None:
    inputs = [InputSpec(f"x{i}", F32, shape) for i, shape in enumerate(shapes)]
    data = {spec.name: np.ones([d if isinstance(d, int) else 5 for d in spec.shape or ()], F32) for spec in inputs}
    batches = open_batches(data, inputs)
    assert (batches.row_wise, batches.rows) == (False, 1)


def run_of(size: int) -> dict[str, Any]:
    return {"x": np.full((size, 2), size, F32), "h": np.zeros((2, size, 3), F32), "sr": np.int64(16000)}


def test_runs_of_a_folder_are_its_files_in_sorted_order(tmp_path: Path) -> None:
    for name, size in (("b", 5), ("a", 4), ("c", 6)):
        npz(tmp_path / f"{name}.npz", **run_of(size))
    batches = list(open_batches(tmp_path, STATE))
    assert [(b.first, b.rows, b.feeds["h"].shape, int(b.feeds["sr"])) for b in batches] == [
        (0, 1, (2, 4, 3), 16000),
        (1, 1, (2, 5, 3), 16000),
        (2, 1, (2, 6, 3), 16000),
    ]


def test_runs_of_an_iterable_are_its_dicts() -> None:
    batches = open_batches((run_of(size) for size in (2, 3)), STATE)
    assert [b.feeds["x"].shape for b in batches] == [b.feeds["x"].shape for b in batches] == [(2, 2), (3, 2)]


def test_runs_with_max_rows_are_spread_evenly() -> None:
    batches = open_batches([run_of(size) for size in range(1, 11)], STATE, max_rows=3)
    assert [len(b.feeds["x"]) for b in batches] == [1 + i * 10 // 3 for i in range(3)]


def test_run_whose_fixed_dimension_differs_is_refused() -> None:
    message = refusal(DataError, run_of(4) | {"h": np.zeros((1, 4, 3), F32)}, *STATE)
    assert "input 'h' wants shape (2, batch, 3), the array has (1, 4, 3)." in message


def test_run_with_a_nan_names_its_index() -> None:
    bad = run_of(4)
    bad["x"][3, 1] = np.nan
    assert "Item 1 of the data: input 'x', index (3, 1), holds nan." in refusal(DataError, [run_of(4), bad], *STATE)


def test_batch_size_for_runs_is_a_usage_error() -> None:
    assert "not all inputs" in refusal(UsageError, run_of(4), *STATE, batch_size=4)


def test_run_read_whole_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "LARGEST_BLOCK", 4096)
    assert refusal(DataError, run_of(1000), *STATE).endswith("would take 0.0 GiB, more than 0.")


# Identities


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 60),
    size=st.integers(1, 70),
    limit=st.none() | st.integers(1, 70),
    form=st.sampled_from(["npz", "compressed", "npy", "fortran", "dict", "items", "folder"]),
    ahead=st.integers(1, 400),
    skip=st.integers(1, 100),
)
def test_batches_put_together_are_the_chosen_rows_in_any_form(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    size: int,
    limit: int | None,
    form: str,
    ahead: int,
    skip: int,
) -> None:
    data, folder = rows(count), tmp_path_factory.mktemp("data")
    source: Any = folder / f"x.{'npy' if form == 'npy' else 'npz'}"
    cuts = np.array_split(data, [count // 3, count // 2])
    if form == "npz":
        np.savez(source, x=data)
    elif form == "compressed":
        np.savez_compressed(source, x=data)
    elif form == "npy":
        np.save(source, data)
    elif form == "fortran":
        np.savez(source, x=np.asfortranarray(data))
    elif form == "folder":
        source = folder
        for index, cut in enumerate(cuts):
            if len(cut):
                np.save(folder / f"{index}.npy", cut)
    else:
        source = {"x": data} if form == "dict" else [{"x": cut} for cut in cuts if len(cut)]
    chosen = count if limit is None else min(count, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "_READ_AHEAD", ahead)
        patch.setattr(arrays_module, "_SKIP_BYTES", skip)
        batches = open_batches(source, [X], batch_size=size, max_rows=limit)
        first_pass, second_pass = list(batches), list(batches)
    assert batches.rows == chosen
    wanted = data[[i * count // chosen for i in range(chosen)]]
    for each in (first_pass, second_pass):
        assert [(b.first, b.rows) for b in each] == [(i, min(size, chosen - i)) for i in range(0, chosen, size)]
        assert all(len(b.feeds["x"]) == b.rows for b in each)
        np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in each]), wanted)


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 40), size=st.integers(1, 50), kind=st.sampled_from("fdeqB?"))
def test_random_rows_do_not_depend_on_the_batch_size(count: int, size: int, kind: str) -> None:
    spec = InputSpec("x", np.dtype(kind), ("batch", 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "_READ_AHEAD", 1)
        drawn = read(open_batches(f"random:{count}", [spec], batch_size=size, seed=5))
    np.testing.assert_array_equal(drawn, read(open_batches(f"random:{count}", [spec], seed=5)))
    assert (drawn.dtype, drawn.shape) == (spec.dtype, (count, 3))


def test_all_inputs_advance_together(tmp_path: Path) -> None:
    source = npz(tmp_path / "c.npz", mask=np.arange(1000), x=rows(1000))
    for batch in open_batches(source, [X, MASK], batch_size=7, max_rows=300):
        np.testing.assert_array_equal(batch.feeds["x"][:, 0], 3 * batch.feeds["mask"])


def test_feeds_are_native_c_ordered_and_of_the_models_dtype(tmp_path: Path) -> None:
    source = npz(tmp_path / "c.npz", x=rows(10).astype(">f8"), mask=np.arange(10, dtype=">i2"))
    for batch in open_batches(source, [X, MASK], batch_size=4):
        assert [batch.feeds[n].dtype.str for n in ("x", "mask")] == [F32.str, I64.str]
        assert batch.feeds["x"].flags.c_contiguous


def test_fortran_ordered_values_are_fed_in_c_order() -> None:
    data = np.asfortranarray(rows(10))
    for batch in open_batches({"x": data}, [X], batch_size=4):
        assert batch.feeds["x"].flags.c_contiguous
        np.testing.assert_array_equal(batch.feeds["x"], data[batch.first :][: batch.rows])


def test_big_endian_values_are_kept(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(open_batches(npz(tmp_path / "c.npz", x=rows(9).astype(">f4")), [X])), rows(9))


def test_default_batch_has_256_rows() -> None:
    assert [b.rows for b in open_batches({"x": rows(600)}, [X])] == [256, 256, 88]


def test_pass_that_is_abandoned_leaves_the_next_one_whole(tmp_path: Path) -> None:
    batches = open_batches(npz(tmp_path / "c.npz", x=rows(2000)), [X], batch_size=10)
    next(iter(batches))
    np.testing.assert_array_equal(read(batches), rows(2000))


def test_two_passes_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    batches = open_batches(npz(tmp_path / "c.npz", x=rows(2000)), [X], batch_size=500)
    for one, other in zip(batches, batches, strict=True):
        np.testing.assert_array_equal(one.feeds["x"], other.feeds["x"])


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "compressed.npz"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(batches_module, "_READ_AHEAD", 1 << 14)
    monkeypatch.setattr(arrays_module, "_SKIP_BYTES", 1 << 14)
    save = {"x.npz": np.savez, "x.npy": np.save, "compressed.npz": np.savez_compressed}[name]
    peaks = []
    for count in (2_000, 20_000):
        save(tmp_path / name, np.random.default_rng(0).random((count, 100), F32))
        spec = InputSpec("x", F32, ("batch", 100))
        batches = open_batches(tmp_path / name, [spec], batch_size=16, max_rows=count // 3)
        tracemalloc.start()
        for _ in batches:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_folder_with_rows_of_two_lengths_begins_a_new_batch(tmp_path: Path) -> None:
    spec = InputSpec("x", F32, ("batch", "length"))
    for name, shape in (("a", (3, 4)), ("b", (2, 4)), ("c", (3, 6))):
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, F32))
    batches = open_batches(tmp_path, [spec], batch_size=4)
    assert [(b.first, b.feeds["x"].shape) for b in batches] == [(0, (4, 4)), (4, (1, 4)), (5, (3, 6))]


def test_max_rows_over_rows_of_two_lengths_keeps_the_formula() -> None:
    parts = [{"x": np.full((5, 2), 1, F32)}, {"x": np.full((6, 3), 2, F32)}]
    batches = open_batches(parts, [InputSpec("x", F32, ("batch", "length"))], max_rows=7, batch_size=100)
    # i * 11 // 7 for i < 7: 0 1 3 4 | 6 7 9
    assert [(b.first, b.feeds["x"].shape) for b in batches] == [(0, (4, 2)), (4, (3, 3))]


# Fixed batches


def fixed(count: int) -> InputSpec:
    return InputSpec("x", F32, (count, 3))


def test_fixed_batch_leaves_out_the_incomplete_one_with_a_notice() -> None:
    batches = open_batches({"x": rows(10)}, [fixed(4)])
    assert [b.rows for b in batches] == [4, 4]
    assert (batches.rows, batches.notices) == (8, ("2 of 10 rows are left out: the model takes 4 at a time.",))


def test_fixed_batch_of_one_takes_every_row() -> None:
    batches = open_batches({"x": rows(10)}, [fixed(1)])
    assert [b.feeds["x"].shape for b in batches] == [(1, 3)] * 10
    np.testing.assert_array_equal(read(batches), rows(10))


def test_fixed_batch_takes_the_same_batch_size() -> None:
    assert open_batches({"x": rows(8)}, [fixed(4)], batch_size=4).rows == 8


def test_fixed_batch_and_another_batch_size_is_a_usage_error() -> None:
    message = refusal(UsageError, {"x": rows(8)}, fixed(4), batch_size=2)
    assert message == "The batch size is 2, but the model fixes it to 4. Expected: x float32 (4, 3)."


def test_fixed_batch_with_fewer_rows_is_refused() -> None:
    assert refusal(DataError, {"x": rows(3)}, fixed(4)) == (
        "The data have 3 rows, too few: the model takes 4 at a time."
    )


def test_fixed_batch_of_zero_takes_no_rows() -> None:
    assert "wants shape (0, 3), the array has (8, 3)." in refusal(DataError, {"x": rows(8)}, fixed(0))


def test_fixed_batch_of_random_rows_leaves_out_the_rest() -> None:
    assert open_batches("random:10", [fixed(4)]).rows == 8


@pytest.mark.parametrize("option", ["batch_size", "max_rows"])
@pytest.mark.parametrize("value", [0, -3])
def test_option_below_one_is_a_usage_error(option: str, value: int) -> None:
    options: dict[str, int] = {option: value}
    assert f"is {value}. It must be at least 1." in refusal(UsageError, {"x": rows(8)}, **options)


# Names


def test_single_array_under_any_name_is_the_single_input(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(open_batches(npz(tmp_path / "c.npz", arr_0=rows(5)), [X])), rows(5))


def test_names_with_slashes_and_colons_are_found(tmp_path: Path) -> None:
    spec = InputSpec("model/dense:0", F32, ("batch", 3))
    source = npz(tmp_path / "c.npz", **{"model/dense:0": rows(5), "mask": np.arange(5)})
    np.testing.assert_array_equal(read(open_batches(source, [spec, MASK]), spec.name), rows(5))


def test_name_in_another_case_is_suggested(tmp_path: Path) -> None:
    source = npz(tmp_path / "calib.npz", Mask=np.arange(5), x=rows(5))
    assert refusal(DataError, source, X, MASK) == (
        f"{source} has no array for input 'mask'; it has 'Mask', 'x'. Did you mean 'Mask'? "
        "Expected: x float32 (batch, 3); mask int64 (batch,)."
    )


def test_missing_name_without_a_near_one_gets_no_suggestion() -> None:
    message = refusal(DataError, {"x": rows(5), "labels": np.arange(5)}, X, MASK)
    assert "it has 'x', 'labels'. Expected:" in message


@pytest.mark.parametrize("extra", [np.ones(5), np.ones((5, 1), int), np.arange(4), np.int64(3)])
def test_extra_array_is_refused(extra: Any) -> None:
    assert refusal(DataError, {"x": rows(5), "more": extra}) == (
        "The dict of data has an array 'more', which is no input of the model. Expected: x float32 (batch, 3)."
    )


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_extra_array_that_may_hold_labels_is_told_how_to_be_named(dtype: type) -> None:
    assert refusal(DataError, {"x": rows(5), "truth": np.arange(5, dtype=dtype)}) == (
        "The dict of data has an array 'truth', which is no input of the model. If it holds the classes of the rows "
        "of --data, add --labels truth. Expected: x float32 (batch, 3)."
    )


def test_extra_array_with_a_near_name_gets_the_suggestion() -> None:
    data: dict[str, Any] = {"x": rows(5), "mask": np.arange(5), "masks": np.arange(5)}
    assert "Did you mean 'mask'?" in refusal(DataError, data, X, MASK)


def test_npy_for_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(5))
    assert "holds one array, but the model has 2 inputs. Save an .npz" in refusal(
        DataError, tmp_path / "x.npy", X, MASK
    )


def test_empty_dict_is_refused() -> None:
    assert "has no array for input 'x'; it has none." in refusal(DataError, {})


@pytest.mark.parametrize("name", ["\x1b[2Jevil", "a\nb", "\u202etxt", "n" * 5000])
def test_hostile_name_is_escaped_and_cut(name: str) -> None:
    message = refusal(DataError, {"x": rows(5), name: rows(5)}, InputSpec(name + "?", F32, (name,)))
    assert len(message) < 600


# Shapes


@pytest.mark.parametrize(
    ("wanted", "shape", "hint"),
    [
        (("n", 3, 28, 28), (5, 28, 28, 3), " Its channels stand elsewhere: transpose it with (0, 3, 1, 2)."),
        (("n", 28, 28, 3), (5, 3, 28, 28), " Its channels stand elsewhere: transpose it with (0, 2, 3, 1)."),
        ((1, 1, 28, 28), (5, 28, 28, 1), " Its channels stand elsewhere: transpose it with (0, 3, 1, 2)."),
        (("n", 784), (5, 28, 28), " Its rows have the right size: reshape it to (5, 784)."),
        (("n", 784), (784,), " Its first axis is missing: array[numpy.newaxis] is one row."),
        (("n", 4), (5, 3), ""),
        (("n", "m", 4), (5, 3), ""),
    ],
)
def test_shape_that_does_not_fit_gets_both_shapes_and_a_hint(wanted: Any, shape: Any, hint: str) -> None:
    spec = InputSpec("x", F32, wanted)
    assert refusal(DataError, {"x": np.zeros(shape, F32)}, spec) == (
        f"The dict of data: input 'x' wants shape ({', '.join(map(str, wanted))}), the array has {shape}."
        f"{hint} Expected: {spec}."
    )


def test_scalar_for_an_input_of_unknown_rank_has_no_rows() -> None:
    assert "the array has ()." in refusal(DataError, {"x": np.float32(1)}, InputSpec("x", F32, None))


def test_no_rows_are_refused(tmp_path: Path) -> None:
    source = npz(tmp_path / "c.npz", x=rows(0))
    assert refusal(DataError, source) == f"{source} has no rows for input 'x'."


def test_empty_rows_are_refused() -> None:
    spec = InputSpec("x", F32, ("batch", "length"))
    assert "is empty: shape (5, 0)." in refusal(DataError, {"x": np.zeros((5, 0), F32)}, spec)


def test_different_numbers_of_rows_are_refused() -> None:
    message = refusal(DataError, {"x": rows(5), "mask": np.arange(6)}, X, MASK)
    assert message == "The dict of data has different numbers of rows: x 5, mask 6. Every input needs as many."


def test_batch_beyond_the_limit_is_refused() -> None:
    spec = InputSpec("x", F32, ("batch", 100_000_000))
    assert refusal(DataError, "random:100", spec, batch_size=100).endswith(
        "would take 37.3 GiB, more than 4. Lower the batch size."
    )


# Dtypes


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([0, 255], np.uint8), np.float32),
        (np.array([0, 2**24], np.int64), np.float32),
        (np.array([-(2**11)], np.int16), np.float16),
        (np.array([1, 2], np.float16), np.float64),
        (np.array([5, -5], np.int64), np.int8),
        (np.array([7], np.uint64), np.int32),
        (np.array([0, 1], np.int64), np.bool_),
        (np.array([False, True]), np.float32),
        (np.array([False, True]), np.int64),
    ],
)
def test_cast_that_loses_nothing_is_silent(values: NDArray[Any], wanted: type) -> None:
    batches = open_batches({"x": values}, [InputSpec("x", np.dtype(wanted), ("n",))], batch_size=1)
    result = read(batches)
    assert result.dtype == wanted
    np.testing.assert_array_equal(result.astype(values.dtype), values)
    assert not any("rounded" in notice for notice in batches.notices)


def test_float64_rounded_to_float32_gives_one_notice() -> None:
    batches = open_batches([{"x": rows(4).astype(np.float64)}, {"x": rows(4)}], [X])
    assert batches.notices == ("Input 'x': float64 data are rounded to float32.",)


def test_integers_too_large_for_float32_give_one_notice_after_the_pass() -> None:
    data = np.full((4, 3), 0, np.int64)
    data[3] = 2**24 + 1
    batches = open_batches({"x": data}, [X], batch_size=1)
    for _ in range(2):
        read(batches)
        assert batches.notices == ("Input 'x': some integers are too large for float32 and are rounded.",)


@pytest.mark.parametrize("size", [1, 3, 256])
@pytest.mark.parametrize(
    ("values", "wanted", "reason"),
    [
        ([0, 1, 128, 300], np.int8, "row 2 (counted from 0), holds 128, which does not fit int8 (-128 to 127)."),
        ([0, 1, 2, -3, 9], np.uint64, "row 3 (counted from 0), holds -3, which does not fit uint64"),
        ([0, 1, 1, 1, 2], np.bool_, "row 4 (counted from 0), holds 2, which does not fit bool (0 to 1)."),
        ([0, 70000], np.float16, "row 1 (counted from 0), holds 70000, too large for float16."),
        ([0.0, 1e39], np.float32, "row 1 (counted from 0), holds 1e+39, too large for float32."),
    ],
)
def test_value_that_does_not_fit_is_refused_by_row(values: Any, wanted: type, reason: str, size: int) -> None:
    spec = InputSpec("x", np.dtype(wanted), ("n",))
    assert reason in refusal(DataError, {"x": np.array(values)}, spec, batch_size=size)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 3), np.complex64),
        np.zeros((2, 3), "S4"),
        np.zeros((2, 3), "U4"),
        np.zeros((2, 3), "datetime64[s]"),
        np.zeros((2, 3), "timedelta64[s]"),
        np.zeros((2, 3), [("a", "f4"), ("b", "f4")]),
        np.zeros((2, 3), "V4"),
    ],
)
def test_dtype_that_is_no_number_is_refused(tmp_path: Path, values: NDArray[Any]) -> None:
    expected = "input 'x' wants float32, the array is "
    assert expected in refusal(DataError, {"x": values})
    assert expected in refusal(DataError, npz(tmp_path / "c.npz", x=values))


def test_floats_for_integers_are_refused() -> None:
    message = refusal(DataError, {"x": rows(4), "mask": np.zeros(4)}, X, MASK)
    assert "input 'mask' wants int64, the array is float64. Convert it before saving." in message


@pytest.mark.parametrize("name", ["c.npz", "c.npy"])
def test_objects_are_refused_and_never_unpickled(tmp_path: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    bombs = np.array([Bomb()], object)
    (np.savez if name == "c.npz" else np.save)(tmp_path / name, bombs)
    assert "holds Python objects, which are never unpickled." in refusal(DataError, tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_ragged_lists_are_refused() -> None:
    assert "'x' cannot be made an array" in refusal(DataError, {"x": [[1.0], [1.0, 2.0]]})


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 7, 256])
def test_value_that_is_not_finite_names_file_input_and_row(tmp_path: Path, value: float, size: int) -> None:
    for name in ("a", "b"):
        data = rows(50)
        data[17:, 1] = value if name == "b" else 0
        npz(tmp_path / f"{name}.npz", x=data)
    assert refusal(DataError, tmp_path, batch_size=size) == (
        f"{tmp_path / 'b.npz'}: input 'x', row 17 (counted from 0), holds {value}. Expected: x float32 (batch, 3)."
    )


def test_row_named_with_max_rows_counts_in_the_file(tmp_path: Path) -> None:
    data = rows(100)
    data[90] = np.nan
    assert "row 90 (counted from 0)" in refusal(DataError, npz(tmp_path / "c.npz", x=data), max_rows=10)


def test_finite_values_whose_sum_overflows_are_taken() -> None:
    assert read(open_batches({"x": np.full((4, 3), 3e38, F32)}, [X])).shape == (4, 3)


def test_equal_rows_give_a_notice_after_the_first_pass() -> None:
    batches = open_batches({"x": np.ones((600, 3), F32)}, [X])
    before = batches.notices
    read(batches)
    assert before == ()
    assert batches.notices == ("Input 'x': all rows are equal.",)


def test_rows_that_differ_in_the_last_one_give_no_notice() -> None:
    data = np.ones((600, 3), F32)
    data[-1, -1] = 2
    batches = open_batches({"x": data}, [X])
    read(batches)
    assert batches.notices == ()


def test_equal_integers_beside_varying_rows_give_no_notice() -> None:
    data: dict[str, Any] = {"x": rows(5), "mask": np.ones(5, np.int64)}
    batches = open_batches(data, [X, MASK])
    read(batches)
    assert batches.notices == ()


def test_equal_integers_alone_give_a_notice() -> None:
    batches = open_batches({"mask": np.ones(5, np.int64)}, [MASK])
    read(batches, "mask")
    assert batches.notices == ("Input 'mask': all rows are equal.",)


def test_single_row_gives_no_notice() -> None:
    batches = open_batches({"x": rows(1)}, [X])
    read(batches)
    assert batches.notices == ()


# Random data


def test_random_rows_are_standard_normal() -> None:
    drawn = read(open_batches("random:20000", [X]))
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02


def test_random_integers_are_zeros_and_ones() -> None:
    drawn = read(open_batches("random:2000", [MASK]), "mask")
    assert set(drawn.tolist()) == {0, 1}
    assert abs(drawn.mean() - 0.5) < 0.05


def test_random_rows_differ_by_seed_and_by_input() -> None:
    inputs = [X, InputSpec("y", F32, ("batch", 3))]
    one = next(iter(open_batches("random:8", inputs)))
    other = next(iter(open_batches("random:8", inputs, seed=1)))
    assert not (one.feeds["x"] == other.feeds["x"]).any()
    assert not (one.feeds["x"] == one.feeds["y"]).any()


def test_random_free_dimensions_become_32() -> None:
    spec = InputSpec("x", F32, ("batch", "length", 5, None))
    assert read(open_batches("random:2", [spec])).shape == (2, 32, 5, 32)


def test_random_runs_have_declared_shapes_and_differ() -> None:
    batches = open_batches("random:3", STATE)
    runs = list(batches)
    assert [[f.shape for f in b.feeds.values()] for b in runs] == [[(32, 2), (2, 32, 3), ()]] * 3
    assert not (runs[0].feeds["x"] == runs[1].feeds["x"]).any()


def test_random_runs_with_max_rows_are_the_first() -> None:
    few, more = open_batches("random:9", STATE, max_rows=2), open_batches("random:9", STATE)
    for one, other in zip(few, list(more)[:2], strict=True):
        np.testing.assert_array_equal(one.feeds["x"], other.feeds["x"])


def test_random_data_are_flagged() -> None:
    assert open_batches("random:3", [X]).random
    assert not open_batches({"x": rows(3)}, [X]).random


def test_random_rows_with_max_rows_are_the_first() -> None:
    few = read(open_batches("random:100", [X], max_rows=7))
    np.testing.assert_array_equal(few, read(open_batches("random:100", [X]))[:7])


@pytest.mark.parametrize("text", ["random:", "random:0", "random:-3", "random:x", "random:1e3", "random:" + "9" * 5000])
def test_malformed_random_is_a_usage_error(text: str) -> None:
    assert "is not random:N with N from 1 to 999999999." in refusal(UsageError, text)


def test_negative_seed_is_a_usage_error() -> None:
    assert refusal(UsageError, "random:3", seed=-1) == "The seed is -1. It must not be negative."


def test_random_data_of_unknown_rank_are_refused() -> None:
    assert "has no declared shape" in refusal(DataError, "random:3", InputSpec("x", F32, None))


# Python objects


def test_one_shot_iterator_can_be_passed_over_twice() -> None:
    batches = open_batches(({"x": rows(4)} for _ in range(3)), [X], batch_size=5)
    np.testing.assert_array_equal(read(batches), np.concatenate([rows(4)] * 3))
    np.testing.assert_array_equal(read(batches), np.concatenate([rows(4)] * 3))


def test_feeds_of_a_dict_are_views() -> None:
    data = rows(10)
    assert all(np.shares_memory(b.feeds["x"], data) for b in open_batches({"x": data}, [X], batch_size=4))


def test_exception_of_the_callers_iterator_passes_through() -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield {"x": rows(4)}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        open_batches(failing(), [X])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "The data are an empty iterable."),
        ([rows(3)], "Item 0 of the data is of type ndarray. It must be a dict of arrays by input name."),
        (rows(3), "The data are of type ndarray. Give a path, a dict of arrays by input name, or such dicts."),
        (7, "The data are of type int. Give a path, a dict of arrays by input name, or such dicts."),
    ],
)
def test_object_that_is_no_data_is_refused(source: Any, message: str) -> None:
    assert refusal(DataError, source) == message


# Files


def test_missing_path_is_refused(tmp_path: Path) -> None:
    assert refusal(DataError, tmp_path / "no.npz") == f"{tmp_path / 'no.npz'} does not exist."


def test_path_as_text_is_taken(tmp_path: Path) -> None:
    assert open_batches(str(npz(tmp_path / "c.npz", x=rows(5))), [X]).rows == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.npz", b"", "is empty."),
        ("c.npy", b"", "is empty."),
        ("c.npz", b"1,2,3\n4,5,6\n", "is no .npz file, whatever its name says."),
        ("c.npy", b"1,2,3\n4,5,6\n", "is no .npy file, whatever its name says."),
        ("c.npz", b"\x93NUMPY\x01\x00", "is a .npy file under another name. Rename it to .npy."),
        ("c.npy", b"PK\x03\x04....", "is an .npz file under another name. Rename it to .npz."),
        ("c.npz", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("c.csv", b"1,2,3\n", "is neither an .npz nor a .npy file nor a folder of such files."),
        ("c.npz", b"PK\x03\x04 cut off", "cannot be read: File is not a zip file."),
        ("c.npy", b"\x93NUMPY\x01", "has no valid .npy header."),
        ("c.npy", b"\x93NUMPY\x09\x00", "has no valid .npy header."),
    ],
)
def test_file_that_is_something_else_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(DataError, tmp_path / name).startswith(f"{tmp_path / name} {message}")


def test_zip_without_members_is_refused(tmp_path: Path) -> None:
    assert refusal(DataError, raw_npz(tmp_path / "c.npz")) == f"{tmp_path / 'c.npz'} has no arrays in it."


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.npz")
    assert refusal(DataError, tmp_path / "c.npz").endswith("is not a regular file.")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = npz(tmp_path / "c.npz", x=rows(4))

    def denied(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # File modes would not do: root reads everything.
    monkeypatch.setattr(Path, "open", denied)
    assert refusal(DataError, source) == f"{source} cannot be read: Permission denied."


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kept", [0.3, 0.98])
def test_truncated_npz_is_refused(tmp_path: Path, save: Any, kept: float) -> None:
    save(tmp_path / "c.npz", x=rows(5000))
    content = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(content[: int(len(content) * kept)])
    assert "cannot be read: File is not a zip file." in refusal(DataError, tmp_path / "c.npz")


@pytest.mark.parametrize("max_rows", [None, 10])
def test_npz_with_a_flipped_bit_is_refused(tmp_path: Path, max_rows: int | None) -> None:
    content = bytearray(npz(tmp_path / "c.npz", x=rows(5000)).read_bytes())
    content[20_002] ^= 1
    (tmp_path / "c.npz").write_bytes(content)
    message = refusal(DataError, tmp_path / "c.npz", max_rows=max_rows)
    assert message.endswith("member 'x.npy', cannot be read: Bad CRC-32 for file 'x.npy'.")


@pytest.mark.parametrize("position", [150, 4000, 20_000])
def test_compressed_npz_with_overwritten_bytes_is_refused(tmp_path: Path, position: int) -> None:
    np.savez_compressed(tmp_path / "c.npz", x=np.random.default_rng(0).random((5000, 3), F32))
    content = bytearray((tmp_path / "c.npz").read_bytes())
    content[position : position + 20] = b"\xff" * 20
    (tmp_path / "c.npz").write_bytes(content)
    assert str(tmp_path / "c.npz") in refusal(DataError, tmp_path / "c.npz")


def test_member_shorter_than_both_its_headers_say_is_refused(tmp_path: Path) -> None:
    member = raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000, 3)}\n", bytes(1200))
    source = raw_npz(tmp_path / "c.npz", ("x.npy", member), method=zipfile.ZIP_DEFLATED)
    content, declared = bytearray(source.read_bytes()), len(member) - 1200 + 120_000
    for size_field in (22, content.index(b"PK\x01\x02") + 24):
        content[size_field : size_field + 4] = struct.pack("<I", declared)
    source.write_bytes(content)
    assert "ends early" in refusal(DataError, source)


def test_encrypted_member_is_refused(tmp_path: Path) -> None:
    content = bytearray(npz(tmp_path / "c.npz", x=rows(50)).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "c.npz").write_bytes(content)
    assert "encrypted" in refusal(DataError, tmp_path / "c.npz")


@pytest.mark.parametrize("cut", [-1, -600, 3])
def test_npy_of_another_length_is_refused(tmp_path: Path, cut: int) -> None:
    np.save(tmp_path / "c.npy", rows(100))
    content = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(content[:cut] if cut < 0 else content + bytes(cut))
    assert refusal(DataError, tmp_path / "c.npy") == (
        f"{tmp_path / 'c.npy'} declares float32 (100, 3), which takes 1200 bytes, but holds {1200 + cut}. "
        "The file is damaged."
    )


@pytest.mark.parametrize(
    "shape",
    ["(1000000000000, 3)", "(-1, 3)", "(-1, -3)", "(4611686018427387904, 4, 3)", "(1" + "0" * 400 + ", 3)"],
)
@pytest.mark.parametrize("form", ["npz", "npy"])
def test_lying_header_is_refused_before_memory_is_taken(tmp_path: Path, shape: str, form: str) -> None:
    content = raw_npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n", bytes(12))
    path = tmp_path / f"c.{form}"
    if form == "npz":
        raw_npz(path, ("x.npy", content), method=zipfile.ZIP_DEFLATED)
    else:
        path.write_bytes(content)
    assert "bytes, but holds 12. The file is damaged." in refusal(DataError, path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "not a dict",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.5, 3)}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)" + " " * 9_995 + "}",
        "(" * 5000,
        "__import__('os').system('true')",
    ],
)
def test_hostile_header_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "c.npy").write_bytes(raw_npy(header, bytes(24)))
    assert refusal(DataError, tmp_path / "c.npy") == f"{tmp_path / 'c.npy'} has no valid .npy header."


def test_header_of_50_megabytes_is_refused_without_reading_it(tmp_path: Path) -> None:
    raw_npz(tmp_path / "c.npz", ("x.npy", raw_npy(" " * 50_000_000, version=2)), method=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    message = refusal(DataError, tmp_path / "c.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.endswith("member 'x.npy', has no valid .npy header.")
    assert peak < 2_000_000


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_of_every_format_version_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "c.npy").open("wb") as file:
        np.lib.format.write_array(file, rows(5), version)
    np.testing.assert_array_equal(read(open_batches(tmp_path / "c.npy", [X])), rows(5))


def test_fortran_order_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "LARGEST_BLOCK", 1000)
    source = npz(tmp_path / "c.npz", x=np.asfortranarray(rows(500)))
    assert "cannot be read in blocks of rows. Save it in C order" in refusal(DataError, source)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows(5))
    with pytest.warns(UserWarning, match="Duplicate name"):
        source = raw_npz(tmp_path / "c.npz", ("x.npy", buffer.getvalue()), ("x.npy", buffer.getvalue()))
    assert "has two arrays named 'x'." in refusal(DataError, source)


def test_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    source = raw_npz(tmp_path / "c.npz", ("read\x1bme.txt", b"hello"))
    assert r"has a member 'read\x1bme.txt' that is no .npy array." in refusal(DataError, source)


def test_file_that_changes_between_passes_is_refused(tmp_path: Path) -> None:
    source = npz(tmp_path / "c.npz", x=rows(50))
    batches = open_batches(source, [X])
    read(batches)
    npz(source, x=rows(51))
    with pytest.raises(DataError, match=re.escape("changed while it was in use. Run again.")):
        read(batches)


def test_file_that_vanishes_between_passes_is_refused(tmp_path: Path) -> None:
    source = npz(tmp_path / "c.npz", x=rows(50))
    batches = open_batches(source, [X])
    source.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        read(batches)


# Folders


def test_folder_without_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("hello")
    assert refusal(DataError, tmp_path) == f"The folder {tmp_path} has no .npz or .npy files in it."


def test_folder_with_other_files_gives_a_notice(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", x=rows(5))
    np.save(tmp_path / "b.npy", rows(3))
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / ".hidden").write_text("hello")
    (tmp_path / "folder").mkdir()
    batches = open_batches(tmp_path, [X])
    assert batches.rows == 8
    assert batches.notices == (f"{tmp_path}: 2 of 4 entries are not .npz or .npy, so not read: README.txt, folder.",)


def test_folder_with_a_broken_file_names_it(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", x=rows(5))
    (tmp_path / "b.npz").write_bytes(b"")
    assert refusal(DataError, tmp_path) == f"{tmp_path / 'b.npz'} is empty."


def test_folder_with_a_dangling_link_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.npz").symlink_to(tmp_path / "gone.npz")
    assert "a.npz cannot be read: No such file or directory." in refusal(DataError, tmp_path)


def test_folder_of_two_input_files_is_read_in_step(tmp_path: Path) -> None:
    for index in range(5):
        npz(tmp_path / f"{index}.npz", x=rows(index + 1), mask=np.full(index + 1, index))
    masks = read(open_batches(tmp_path, [X, MASK], batch_size=4), "mask")
    np.testing.assert_array_equal(masks, np.repeat(np.arange(5), np.arange(1, 6)))

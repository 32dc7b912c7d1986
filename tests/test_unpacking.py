"""Packed files that somebody changed: dense again, or one clear line; never a crash, never other weights."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model, run
from onnx import ModelProto, TensorProto, helper, numpy_helper
from test_storage import encoded, masked, net

from onnxdpp.errors import ModelError
from onnxdpp.graph import unpacking
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.records import KEY
from onnxdpp.graph.rewriting import fill
from onnxdpp.graph.storage import is_packed, pack, unpack

Change = Callable[[ModelProto], object]

KEEPS = {"packed": 0.4, "gaps": 0.1, "sparse": 0.1}


def packed(form: str, shape: tuple[int, int] = (99, 65), **options: Any) -> ModelProto:
    """One weight W in this form."""
    storage = "sparse" if form == "sparse" else "packed"
    result, (row,) = pack(net(KEEPS[form], shape), None, storage=storage, **options)
    assert row.form == form
    return result


def metadata(proto: ModelProto) -> Any:
    return json.loads(next(entry.value for entry in proto.metadata_props if entry.key == KEY))


def tell(proto: ModelProto, whole: Any) -> None:
    next(entry for entry in proto.metadata_props if entry.key == KEY).value = (
        whole if isinstance(whole, str) else json.dumps(whole)
    )


def initializer(proto: ModelProto, ending: str) -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(ending))


def setting(ending: str, array: Any) -> Change:
    """A change of an initializer: other entries, maybe of another shape or type."""

    def change(proto: ModelProto) -> None:
        tensor = initializer(proto, ending)
        content = np.asarray(array(numpy_helper.to_array(tensor)) if callable(array) else array)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(content.dtype)
        fill(tensor, content)

    return change


def telling(**fields: Any) -> Change:
    """A change of what the metadata say of the weight."""

    def change(proto: ModelProto) -> None:
        whole = metadata(proto)
        whole["tensors"][0].update(fields)
        tell(proto, whole)

    return change


def written_by(ending: str, edit: Callable[[onnx.NodeProto], object]) -> Change:
    """A change of the node whose name ends so."""
    return lambda proto: edit(next(node for node in proto.graph.node if node.name.endswith(ending)))


def reading(name: str) -> Change:
    """Somebody else reads a value, too."""

    def change(proto: ModelProto) -> None:
        proto.graph.node.append(helper.make_node("Identity", [name], ["seen"]))
        proto.graph.output.append(helper.make_tensor_value_info("seen", 1, None))

    return change


def cleared(ending: str) -> Change:
    return written_by(ending, lambda node: node.ClearField("attribute"))


CODED = "packed", "gaps"
TAMPERED: dict[str, tuple[tuple[str, ...], Change, str]] = {
    "fewer values": (CODED, setting("/values", lambda a: a[:-1]), r"values"),
    "more values": (CODED, setting("/values", lambda a: np.append(a, a)), r"values"),
    "values of another type": (CODED, setting("/values", lambda a: a.astype(np.float64)), "another element type"),
    "values of two axes": (CODED, setting("/values", lambda a: a[None]), "another shape"),
    "no values": (CODED, setting("/values", np.zeros(0, np.float32)), "values"),
    "a first value that is not zero": (("packed",), setting("/values", lambda a: a + 1), "do not begin with zero"),
    "more bits": (("packed",), setting("/codes", lambda a: a | 1), "its mask asks for"),
    "a longer mask": (("packed",), setting("/codes", lambda a: np.append(a, a)), "entries has 805 bytes"),
    "a shorter mask": (("packed",), setting("/codes", lambda a: a[:-1]), "a mask of 6435 entries has 805 bytes"),
    "a signed mask": (("packed",), setting("/codes", lambda a: a.astype(np.int8)), "another element type"),
    "distances that lead out": (("gaps",), setting("/codes", lambda a: a | 128), "lead to entry"),
    "distances of zero": (("gaps",), setting("/codes", lambda a: a // 2), "two values have one place"),
    "signed distances": (("gaps",), setting("/codes", lambda a: -a.astype(np.int16)), "another element type"),
    "another shape in the graph": (CODED, setting("/shape", np.array([65, 99])), "'W/packed/shape' is not what"),
    "another size in the graph": (CODED, setting("/size", np.array([6434])), "'W/packed/size' is not what"),
    "a size of two axes": (CODED, setting("/size", np.array([[6435]])), "another shape"),
    "another table": (("packed",), setting("/table", lambda a: a[::-1]), "table' is not what"),
    "another axis": (CODED, setting("/axis", np.array(1)), "axis' is not what"),
    "another shape": (CODED, telling(shape=[65, 99]), "'W/packed/shape' is not what"),
    "a larger shape": (CODED, telling(shape=[99, 650]), "is not what it should be"),
    "an absurd shape": (CODED, telling(shape=[2**19 - 1, 2**20 - 1]), "are too many for"),
    "another type": (CODED, telling(dtype="float64"), "another element type|no ConstantOfShape writes"),
    "narrow values that are none": (CODED, telling(narrow=True), "no Cast writes 'W/packed/wide'"),
    "another form": (("packed",), telling(form="gaps"), "writes"),
    "another stem": (CODED, telling(stem="b"), "writes"),
    "the name of the output": (CODED, telling(name="y"), "no Reshape writes 'y' as it should"),
    "another operator": (CODED, written_by("/flat", lambda node: setattr(node, "op_type", "Neg")), "writes"),
    "an operator of others": (CODED, written_by("/flat", lambda node: setattr(node, "domain", "local")), "writes"),
    "other inputs": (CODED, written_by("/flat", lambda node: node.input.reverse()), "writes"),
    "a cast to another type": (("packed",), cleared("/mask"), "no Cast writes 'W/packed/mask'"),
    "no axis": (("gaps",), cleared("/flat"), "no ScatterElements writes"),
    "other zeros": (("gaps",), cleared("/zeros"), "no ConstantOfShape writes"),
    "an exclusive sum": (
        CODED,
        written_by("/place" , lambda node: node.attribute.append(helper.make_attribute("exclusive", 1))),
        "writes",
    ),
    "somebody who reads the values": (CODED, reading("W/packed/values"), "'W/packed/values' is read by others"),
    "somebody who reads a step": (CODED, reading("W/packed/place"), "'W/packed/place' is read by others"),
    "codes that callers may override": (
        CODED,
        lambda proto: proto.graph.input.append(helper.make_tensor_value_info("W/packed/codes", 2, None)),
        "or one that callers may override",
    ),
    "no codes": (
        CODED,
        lambda proto: proto.graph.initializer.remove(initializer(proto, "/codes")),
        "'W/packed/codes' is no initializer",
    ),
    "a sparse one of another shape": (("sparse",), telling(shape=[65, 99]), "its shape or element type"),
    "a sparse one of another type": (("sparse",), telling(dtype="int32"), "its shape or element type"),
    "a place far behind": (("sparse",), telling(position=9), "was initializer number 9, and there are 1 before it"),
}  # fmt: skip


def sparse_changes() -> dict[str, tuple[Callable[[Any], object], str]]:
    def indices(edit: Callable[[Any], Any]) -> Callable[[Any], object]:
        return lambda part: fill(part.indices, edit(numpy_helper.to_array(part.indices).copy()))

    return {
        "negative indices": (indices(lambda a: a - 10_000), "not ascending ones below 6435"),
        "indices behind the end": (indices(lambda a: a + 6435), "not ascending ones below 6435"),
        "descending indices": (indices(lambda a: a[::-1]), "not ascending ones below 6435"),
        "the same index twice": (indices(lambda a: np.where(a == a[1], a[0], a)), "not ascending ones below 6435"),
        "fewer indices": (indices(lambda a: a[:-1]), "indices for"),
        "indices of two axes": (indices(lambda a: np.stack([a, a], 1)), "not of one axis and int64"),
        "an absurd shape": (lambda part: part.dims.__setitem__(slice(None), [2**19, 2**20]), "are too many for"),
    }


def cases() -> list[Any]:
    return [
        pytest.param(form, change, reason, id=f"{form}: {name}")
        for name, (forms, change, reason) in TAMPERED.items()
        for form in forms
    ]


@pytest.mark.parametrize(("form", "change", "reason"), cases())
def test_a_tampered_file_gives_one_clear_line(form: str, change: Change, reason: str) -> None:
    proto = packed(form)
    change(proto)
    with pytest.raises(ModelError, match=reason) as caught:
        unpack(proto, None)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("The metadata entry 'onnxdpp.storage' says that '")
    with pytest.raises(ModelError, match=reason):
        pack(proto, None)


@pytest.mark.parametrize("name", sparse_changes())
def test_a_tampered_sparse_initializer_gives_one_clear_line(name: str) -> None:
    change, reason = sparse_changes()[name]
    proto = packed("sparse")
    change(proto.graph.sparse_initializer[0])
    if name == "an absurd shape":
        telling(shape=[2**19, 2**20])(proto)
    with pytest.raises(ModelError, match=reason):
        unpack(proto, None)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("[" * 200_000, "nested too deep|no JSON"),
        ('{"version": ' + "9" * 5000 + "}", "it is no JSON"),
        ([], "not of version 1"),
        ({}, "not of version 1"),
        ({"version": 2, "shared": "s", "tensors": []}, "not of version 1"),
        ({"version": 1, "tensors": []}, "it lists no tensors"),
        ({"version": 1, "shared": "s", "tensors": {}}, "it lists no tensors"),
        ({"version": 1, "shared": "\ud800", "tensors": []}, "it lists no tensors"),
        ({"version": 1, "shared": "s", "tensors": [7]}, "a tensor without a name"),
        ({"version": 1, "shared": "s", "tensors": [{"name": ""}]}, "a tensor without a name"),
    ],
)
def test_metadata_that_cannot_be_read_are_refused(whole: Any, reason: str) -> None:
    proto = packed("packed")
    tell(proto, whole)
    with pytest.raises(ModelError, match=reason) as caught:
        unpack(proto, None)
    assert str(caught.value).startswith("The metadata entry 'onnxdpp.storage' cannot be read: ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        *[("form", value, "the form of 'W' is unknown") for value in ("zip", None, 1, [], "dense")],
        *[("dtype", value, "the type of 'W' is unknown") for value in ("string", None, 1, ["float32"], "int4")],
        *[
            ("shape", value, "the shape of 'W' is impossible")
            for value in (None, 7, "77", [-1], [0], [1.5], [True], ["9"], [[9]], [2**40], [10**100], [1] * 65)
        ],
        *[("stem", value, "the parts of 'W' are not named") for value in (None, "", 1, "a\ud800")],
        *[("narrow", value, "the parts of 'W' are not named") for value in (None, 1, "yes")],
    ],
)
def test_metadata_of_impossible_content_are_refused(field: str, value: Any, reason: str) -> None:
    proto = packed("packed")
    telling(**{field: value})(proto)
    with pytest.raises(ModelError, match=reason):
        unpack(proto, None)


@pytest.mark.parametrize("value", [None, -1, 1.0, True, "1"])
def test_impossible_positions_are_refused(value: Any) -> None:
    proto = packed("sparse")
    telling(position=value)(proto)
    with pytest.raises(ModelError, match="the position of 'W' is impossible"):
        unpack(proto, None)


def test_narrow_values_of_a_narrow_type_are_refused() -> None:
    proto = packed("packed")
    telling(narrow=True, dtype="float16")(proto)
    with pytest.raises(ModelError, match="'W' is float16, which float16 does not narrow"):
        unpack(proto, None)


def test_a_tensor_or_an_entry_that_is_there_twice_is_refused() -> None:
    proto = packed("packed")
    whole = metadata(proto)
    tell(proto, {**whole, "tensors": whole["tensors"] * 2})
    with pytest.raises(ModelError, match="it lists a tensor twice"):
        unpack(proto, None)
    proto = packed("packed")
    proto.metadata_props.add().CopyFrom(proto.metadata_props[0])
    with pytest.raises(ModelError, match="it is there 2 times"):
        unpack(proto, None)


@pytest.mark.parametrize("form", CODED)
def test_two_tensors_cannot_share_their_parts(form: str) -> None:
    proto = packed(form)
    whole = metadata(proto)
    tell(proto, {**whole, "tensors": [*whole["tensors"], {**whole["tensors"][0], "name": "V"}]})
    last = next(node for node in proto.graph.node if node.output[0] == "W")
    proto.graph.node.append(helper.make_node("Reshape", list(last.input), ["V"]))
    with pytest.raises(ModelError, match="is read by others too"):
        unpack(proto, None)


def test_sizes_are_looked_at_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    proto = packed("gaps")
    telling(shape=[2**18, 2**20])(proto)
    setting("/shape", np.array([2**18, 2**20]))(proto)
    setting("/size", np.array([2**38]))(proto)
    monkeypatch.setattr(unpacking, "decoded", never)
    with pytest.raises(ModelError, match="274877906944 entries are too many for"):
        unpack(proto, None)


# Changed by somebody who meant no harm


@pytest.mark.parametrize("form", CODED)
def test_a_weight_that_was_made_dense_again_stays_so(form: str) -> None:
    dense, proto = net(KEEPS[form], (99, 65)), packed(form)
    told = proto.metadata_props[0]
    folded = ModelProto()
    folded.CopyFrom(dense)
    folded.metadata_props.append(told)
    back, rows = unpack(folded, None)
    assert rows == []
    assert encoded(back) == encoded(dense)
    assert not is_packed(back)
    again, (row,) = pack(folded, None, storage="packed")
    assert row.form == form
    assert encoded(again) == encoded(proto)


def test_a_sparse_initializer_that_was_made_dense_again_stays_so() -> None:
    dense, proto = net(0.1, (99, 65)), packed("sparse")
    dense.metadata_props.append(proto.metadata_props[0])
    back, rows = unpack(dense, None)
    assert rows == []
    assert [tensor.name for tensor in back.graph.initializer] == ["W", "b"]


@pytest.mark.parametrize("form", CODED)
def test_names_comments_and_order_of_nodes_do_not_matter(form: str) -> None:
    proto = packed(form)
    for number, node in enumerate(proto.graph.node):
        node.name, node.doc_string, node.domain = f"n{number}", "a comment", "ai.onnx" if number % 2 else ""
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    back, (row,) = unpack(proto, None)
    assert row.form == form
    assert back.graph.initializer[0] == net(KEEPS[form], (99, 65)).graph.initializer[0]
    assert [node.op_type for node in back.graph.node] == ["Gemm"]


def test_a_shared_constant_that_somebody_reads_stays() -> None:
    proto = packed("packed")
    reading("onnxdpp/packed/table")(proto)
    proto.graph.output[1].CopyFrom(helper.make_tensor_value_info("seen", TensorProto.UINT8, [256, 8]))
    back, _ = unpack(proto, None)
    check_model(back, "the model")
    assert [tensor.name for tensor in back.graph.initializer] == ["W", "b", "onnxdpp/packed/table"]


def test_the_order_of_the_metadata_does_not_matter() -> None:
    weights = {f"W{number}": masked(60, 60, keep=0.1, seed=number) for number in range(4)}
    body = " ".join(f"h{number + 1} = MatMul(h{number}, W{number})" for number in range(4))
    proto = model(f"g (float[N, 60] h0) => (float[N, 60] h4) {{ {body} }}", **weights)
    for storage in ("packed", "sparse"):
        there = pack(proto, None, storage=storage)[0]
        whole = metadata(there)
        assert len(whole["tensors"]) == 4
        tell(there, {**whole, "tensors": whole["tensors"][::-1]})
        assert encoded(unpack(there, None)[0]) == encoded(proto)


def test_other_sparse_initializers_and_metadata_stay() -> None:
    proto = net(0.1, (99, 65))
    proto.metadata_props.add(key="author", value="somebody")
    own = proto.graph.sparse_initializer.add(dims=[65])
    own.values.CopyFrom(numpy_helper.from_array(np.float32([7]), "own"))
    own.indices.CopyFrom(numpy_helper.from_array(np.int64([3]), "own_indices"))
    proto.graph.node.append(helper.make_node("Add", ["y", "own"], ["z"]))
    proto.graph.output[0].name = "z"
    before = encoded(proto)
    for storage in ("sparse", "packed"):
        there = pack(proto, None, storage=storage)[0]
        assert encoded(unpack(there, None)[0]) == before


@cache
def small(form: str) -> bytes:
    return encoded(packed(form, (60, 61)))


@settings(max_examples=300)
@given(data=st.data())
def test_no_change_of_one_byte_crashes_or_passes_unseen(data: st.DataObject) -> None:
    """Whatever is decoded from a file with one byte changed is what onnxruntime decodes from it."""
    form = data.draw(st.sampled_from(["packed", "gaps", "sparse"]))
    content = bytearray(small(form))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    proto = ModelProto()
    try:
        proto.ParseFromString(bytes(content))
        check_model(proto, "the changed model")
    except Exception:
        return  # load_model refuses it
    try:
        back, _ = unpack(proto, None)
    except ModelError:
        return
    feed = {proto.graph.input[0].name: np.ones((2, 60), np.float32)}
    try:
        after = run(proto, feed)
    except Exception:
        return
    assert np.array_equal(run(back, feed)[0], after[0], equal_nan=True)

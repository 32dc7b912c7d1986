"""Weights that lie beside the model: read where they lie, pruned as others are, written so that no crash breaks it."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import EncodeError
from invoking import Outcome, contents, data, invoke, mlp, refusal, untouched
from models import Array, model
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxdpp
from onnxdpp.errors import MachineError, ModelError, UsageError
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.external import data_files, mapped, mapped_from
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import file_info, load_model, model_info, save_model
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.walking import all_tensors

WIDE = {"w1": (8, 64), "b1": (64,), "w2": (64, 48), "b2": (48,), "w3": (48, 3), "b3": (3,)}
"""Of `invoking.mlp`: wide enough that what is pruned is not held in the model."""

ROWS = data(300)


def outside(proto: ModelProto, path: Path, location: str = "weights.bin", start: int = 0) -> Path:
    """Write a model whose initializers all lie in one data file, the first at `start`."""
    proto = ModelProto.FromString(proto.SerializeToString())
    end = start
    with path.with_name(location).open("wb") as file:
        for tensor in proto.graph.initializer:
            if not tensor.HasField("raw_data"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
            file.truncate(end)
            file.seek(end)
            file.write(tensor.raw_data)
            extent = {"location": location, "offset": end, "length": len(tensor.raw_data)}
            end += len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in extent.items():
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A model and its weights, in a folder that must stay as it is."""
    (tmp_path / "in").mkdir()
    return outside(mlp(**WIDE), tmp_path / "in" / "model.onnx", start=40)


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def weights(path: Path) -> dict[str, Array]:
    """Initializers of a model file, as the onnx package reads them."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def answers(path: Path, x: Array) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def graph_at(path: Path) -> Graph:
    return Graph(load_model(path), path.parent)


def data_of(path: Path) -> list[str]:
    """Names of the data files of a model."""
    return [file.name for file in data_files(onnx.load(path, load_external_data=False), path.parent)]


# Reading


DTYPES = [
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64),
    *(TensorProto.BOOL, TensorProto.UINT8, TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, TensorProto.INT4),
]


@pytest.mark.parametrize("kind", DTYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4)], ids=str)
@pytest.mark.parametrize("start", [0, 13, 5000])
def test_array_of_a_tensor_in_external_data(kind: int, shape: tuple[int, ...], start: int, tmp_path: Path) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    held = numpy_helper.from_array(array, "c")
    assert held.data_type == kind
    proto = model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    proto.graph.initializer.append(held)
    found = graph_at(outside(proto, tmp_path / "m.onnx", start=start)).array("c")
    assert found is not None
    assert (found.dtype, found.shape, found.tolist()) == (dtype, shape, array.tolist())


def test_array_in_external_data_is_mapped_and_not_writable(pair: Path) -> None:
    array = graph_at(pair).array("w2")
    assert array is not None
    place = mapped_from(array)
    assert place is not None
    assert (place.path, place.length) == (pair.with_name("weights.bin"), 64 * 48 * 4)
    assert not array.flags.writeable


@pytest.mark.parametrize("part", [np.s_[1:], np.s_[:, :1], np.s_[::-1], np.s_[:1]], ids=str)
def test_part_of_a_mapped_array_is_no_longer_where_the_whole_is(pair: Path, part: Any) -> None:
    array = graph_at(pair).array("w2")
    assert array is not None
    assert mapped_from(array[part]) is None
    assert mapped_from(array.T) is None
    assert mapped_from(array.view(np.int32)) is None


def test_reason_where_nobody_says_where_the_data_lie(pair: Path) -> None:
    graph = Graph(load_model(pair))
    assert graph.array("w1") is None
    assert graph.why_not_constant("w1") == "'w1' lies in external data; load the model by its path"
    assert graph_at(pair).why_not_constant("w1") is None


@pytest.mark.parametrize("call", ["prune", "inspect"])
def test_proto_with_external_data_names_no_folder(pair: Path, call: str) -> None:
    proto = load_model(pair)
    with pytest.raises(ModelError, match=r"a ModelProto does not say where\. Give the model's path\."):
        onnxdpp.prune(proto, {"x": ROWS}, keep=0.5) if call == "prune" else onnxdpp.inspect(proto)


def test_session_without_the_folder(pair: Path) -> None:
    with pytest.raises(ModelError, match="nothing says where they lie"):
        Session(load_model(pair), "cpu")


def test_nan_in_external_data(tmp_path: Path) -> None:
    spoilt = np.full((8, 64), np.float32(1))
    spoilt[3, 5:7] = np.nan
    path = outside(mlp(**{**WIDE, "w1": spoilt}), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="Initializer 'w1' holds 2 NaN among 512 entries"):
        load_model(path)


def test_data_that_vanish_after_the_check(pair: Path) -> None:
    graph = graph_at(pair)
    pair.with_name("weights.bin").unlink()
    with pytest.raises(ModelError, match=r"External data in '.*weights\.bin' cannot be read: .*No such file"):
        graph.array("w1")


def test_inspection_counts_zeros_and_bytes(tmp_path: Path) -> None:
    sparse = np.zeros((8, 64), np.float32)
    sparse[0] = 1
    path = outside(mlp(**{**WIDE, "w1": sparse}), tmp_path / "model.onnx")
    size = onnxdpp.inspect(path)["model"]
    assert size["parameters"] - size["nonzero"] == 7 * 64
    assert size["bytes"] == path.stat().st_size + path.with_name("weights.bin").stat().st_size
    assert size["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_inspection_finds_what_it_finds_in_one_file(pair: Path) -> None:
    found, inline = onnxdpp.inspect(pair), onnxdpp.inspect(mlp(**WIDE))
    assert found["layers"] == inline["layers"]
    assert found["refusals"] == inline["refusals"]


# Pruning


@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("refit", ["affine", "linear", "none"])
def test_the_same_is_pruned_as_in_one_file(pair: Path, tmp_path: Path, unit: str, refit: str) -> None:
    options: dict[str, Any] = {"keep": 0.5, "unit": unit, "refit": refit, "provider": "cpu"}
    inline = onnxdpp.prune(mlp(**WIDE), {"x": ROWS}, **options)
    with untouched(pair.parent):
        result = onnxdpp.prune(pair, {"x": ROWS}, **options)
        result.save(tmp_path / "out.onnx")
    inline.save(tmp_path / "inline.onnx")
    assert [layer["keep"] for layer in result.report["layers"]] == [layer["keep"] for layer in inline.report["layers"]]
    for key in ("parameters", "nonzero", "macs"):
        assert result.report["model"]["before"][key] == inline.report["model"]["before"][key]
        assert result.report["model"]["after"][key] == inline.report["model"]["after"][key]
    found, wanted = weights(tmp_path / "out.onnx"), weights(tmp_path / "inline.onnx")
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    y = answers(tmp_path / "out.onnx", ROWS)
    np.testing.assert_allclose(y, answers(tmp_path / "inline.onnx", ROWS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("unit", "keep"), [("neuron", 0.5), ("edge", 0.2)])
def test_polishing(pair: Path, tmp_path: Path, unit: str, keep: float) -> None:
    options: dict[str, Any] = {"keep": keep, "unit": unit, "provider": "cpu", "method": "importance", "polish": 2}
    result = onnxdpp.prune(pair, {"x": ROWS}, **options)
    (told,) = (notice for notice in result.report["notices"] if notice.startswith("Polishing took"))
    assert not told.startswith(("Polishing took 0 ", "Polishing took 1 "))
    result.save(tmp_path / "out.onnx")
    found = onnxdpp.evaluate(pair, tmp_path / "out.onnx", {"x": ROWS}, provider="cpu", latency=False, memory=False)
    assert found["discrepancy"] == result.report["discrepancy"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_pruning_in_another_type(dtype: type, tmp_path: Path) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    text = f"m ({kind}[N, 8] x) => ({kind}[N, 3] y) {{ a = MatMul(x, w1)  p = Relu(a)  y = MatMul(p, w2) }}"
    path = outside(model(text, dtype=dtype, w1=(8, 640), w2=(640, 3)), tmp_path / "m.onnx")
    result = onnxdpp.prune(path, {"x": ROWS.astype(dtype)}, keep=0.5, provider="cpu", refit="linear")
    result.save(tmp_path / "out.onnx")
    assert {name: (array.dtype, array.shape) for name, array in weights(tmp_path / "out.onnx").items()} == {
        "w1": (np.dtype(dtype), (8, 320)),
        "w2": (np.dtype(dtype), (320, 3)),
    }
    assert np.isfinite(answers(tmp_path / "out.onnx", ROWS.astype(dtype))).all()


def test_keeping_everything_changes_no_weight(pair: Path, tmp_path: Path) -> None:
    onnxdpp.prune(pair, {"x": ROWS}, keep=1.0, refit="none", provider="cpu").save(tmp_path / "out.onnx")
    found, wanted = weights(tmp_path / "out.onnx"), weights(pair)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }


def test_weights_in_constant_nodes_stay_there(pair: Path, tmp_path: Path) -> None:
    proto = load_model(pair)
    held = next(tensor for tensor in mlp(**WIDE).graph.initializer if tensor.name == "w2")
    proto.graph.initializer.remove(next(tensor for tensor in proto.graph.initializer if tensor.name == "w2"))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], value=held))
    pair.write_bytes(proto.SerializeToString())
    onnxdpp.prune(pair, {"x": ROWS}, keep=0.5, provider="cpu").save(tmp_path / "out.onnx")
    constant = load_model(tmp_path / "out.onnx").graph.node[0].attribute[0].t
    assert (constant.data_location, list(constant.dims)) == (TensorProto.DEFAULT, [32, 24])
    assert answers(tmp_path / "out.onnx", ROWS).shape == (300, 3)


def test_command_line(pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "calib.npz", x=ROWS)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "small.onnx"
    with untouched(pair.parent):
        ended = invoke(
            capfd, *("prune", pair, "--calib", tmp_path / "calib.npz", "--keep", 0.5, "-o", out, "--provider", "cpu")
        )
    assert ended.code == 0, ended
    (name,) = data_of(out)
    assert sorted(contents(out.parent)) == sorted([out.name, name])
    assert answers(out, ROWS).shape == (300, 3)


@pytest.mark.parametrize("name", ["model.onnx", "../in/model.onnx", "../link/model.onnx", "../both/../in/model.onnx"])
def test_model_named_from_the_current_folder(
    name: str, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "both").mkdir()
    monkeypatch.chdir(pair.parent)
    result = onnxdpp.prune(name, {"x": ROWS}, keep=0.5, provider="cpu", layers="fc1")
    monkeypatch.chdir(tmp_path)
    result.save("out.onnx")
    assert answers(tmp_path / "out.onnx", ROWS).shape == (300, 3)


def test_report_says_what_is_written(pair: Path, tmp_path: Path) -> None:
    result = onnxdpp.prune(pair, {"x": ROWS}, keep=0.5, provider="cpu")
    result.save(tmp_path / "out.onnx")
    after = result.report["model"]["after"]
    assert after["sha256"] == hashlib.sha256((tmp_path / "out.onnx").read_bytes()).hexdigest()
    assert after["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir() if file.is_file())
    assert onnxdpp.inspect(tmp_path / "out.onnx")["model"] == {**after, "macs": None}


def test_same_bytes_under_any_name(pair: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        onnxdpp.prune(pair, {"x": ROWS}, keep=0.5, provider="cpu").save(tmp_path / name / f"{name}.onnx")
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert one.pop("one.onnx") == other.pop("other.onnx")
    assert one == other
    assert len(one) == 1


def test_pruning_again_what_was_pruned(pair: Path, tmp_path: Path) -> None:
    onnxdpp.prune(pair, {"x": ROWS}, keep=0.5, provider="cpu").save(tmp_path / "once.onnx")
    with untouched(pair.parent):
        onnxdpp.prune(tmp_path / "once.onnx", {"x": ROWS}, keep=0.5, provider="cpu").save(tmp_path / "twice.onnx")
    assert weights(tmp_path / "twice.onnx")["w2"].shape == (16, 12)
    assert weights(tmp_path / "once.onnx")["w2"].shape == (32, 24)


def test_real_model(shared_models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = shared_models / "ext-lopatoj__onnxruntime_controller" / "policy.onnx"
    out = tmp_path / "out.onnx"
    ended = invoke(capfd, *("prune", path, "--calib", "random:300", "--keep", 0.5, "-o", out, "--provider", "cpu"))
    assert ended.code == 0, ended
    onnx.checker.check_model(out, full_check=True)
    assert file_info(out, data_files(load_model(out), tmp_path)).bytes < 0.3 * 700695


# The pair that is written


def test_round_trip(pair: Path, tmp_path: Path) -> None:
    for name, source in (("first", pair), ("second", tmp_path / "first" / "m.onnx")):
        (tmp_path / name).mkdir()
        info = save_model(load_model(source), tmp_path / name / "m.onnx", folder=source.parent)
        assert info == model_info(load_model(source), source.parent)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert {name: array.tobytes() for name, array in weights(tmp_path / "second" / "m.onnx").items()} == {
        name: array.tobytes() for name, array in weights(pair).items()
    }


def test_all_but_where_the_data_lie_stays_as_it_was(pair: Path, tmp_path: Path) -> None:
    save_model(load_model(pair), tmp_path / "m.onnx", folder=pair.parent)
    before, after = load_model(pair), load_model(tmp_path / "m.onnx")
    for proto in (before, after):
        for _, tensor in all_tensors(proto):
            del tensor.external_data[:]
    assert before == after


def test_data_file_is_named_after_its_content(pair: Path, tmp_path: Path) -> None:
    save_model(load_model(pair), tmp_path / "m.onnx", folder=pair.parent)
    (name,) = data_of(tmp_path / "m.onnx")
    assert name == f"onnxdpp-{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16]}.data"


def test_offsets_are_aligned(tmp_path: Path) -> None:
    proto = model("g (float[N] x) => (float[N] y) { y = Relu(x) }", a=(3,), b=(1024, 256), c=(5,), d=(1024, 257))
    path = outside(proto, tmp_path / "in.onnx", start=4)
    save_model(load_model(path), tmp_path / "out.onnx", folder=tmp_path)
    tensors = load_model(tmp_path / "out.onnx").graph.initializer
    offsets = [int(entry.value) for tensor in tensors for entry in tensor.external_data if entry.key == "offset"]
    assert offsets == [0, 4096, 4096 + 2**20, 2 * 4096 + 2**20]
    assert weights(tmp_path / "out.onnx")["d"].tobytes() == weights(path)["d"].tobytes()


def test_what_two_tensors_share_stays_shared(tmp_path: Path) -> None:
    path = outside(mlp(**WIDE), tmp_path / "in.onnx")
    proto = load_model(path)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(proto.graph.initializer[2])
    twin.name = "twin"
    save_model(proto, tmp_path / "out.onnx", folder=tmp_path)
    (name,) = data_of(tmp_path / "out.onnx")
    assert (tmp_path / name).stat().st_size < path.with_name("weights.bin").stat().st_size + 64 * 6
    assert weights(tmp_path / "out.onnx")["twin"].tobytes() == weights(path)["w2"].tobytes()


def test_what_the_model_holds_itself_it_goes_on_holding(tmp_path: Path) -> None:
    path = outside(mlp(**WIDE), tmp_path / "in.onnx")
    proto = load_model(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(5000, np.float32), "own"))
    save_model(proto, tmp_path / "out.onnx", folder=tmp_path)
    assert load_model(tmp_path / "out.onnx").graph.initializer[-1] == proto.graph.initializer[-1]


def test_small_results_are_held_by_the_model(tmp_path: Path) -> None:
    path = outside(mlp(), tmp_path / "in.onnx")
    onnxdpp.prune(path, {"x": ROWS}, keep=0.5, provider="cpu", layers="fc2").save(tmp_path / "out.onnx")
    places = {tensor.name: tensor.data_location for tensor in load_model(tmp_path / "out.onnx").graph.initializer}
    assert [name for name, place in places.items() if place == TensorProto.EXTERNAL] == ["w1", "b1"]


def test_model_beyond_what_one_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(proto: ModelProto) -> bytes:
        if proto.ByteSize() > 5000:
            raise EncodeError("Failed to serialize proto")
        return proto.SerializeToString(deterministic=True)

    proto = mlp(**WIDE)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(300))))
    monkeypatch.setattr("onnxdpp.graph.model._serialized", limited)
    info = save_model(proto, tmp_path / "m.onnx")
    assert info == file_info(tmp_path / "m.onnx", data_files(load_model(tmp_path / "m.onnx"), tmp_path))
    assert load_model(tmp_path / "m.onnx").graph.node == proto.graph.node
    places = {tensor.name: tensor.data_location for tensor in load_model(tmp_path / "m.onnx").graph.initializer}
    assert [name for name, place in places.items() if place == TensorProto.EXTERNAL] == ["w1", "w2"]
    held = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in mlp(**WIDE).graph.initializer}
    assert {name: array.tobytes() for name, array in weights(tmp_path / "m.onnx").items()} == held


def test_saving_without_the_folder(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Initializer 'w1' lies in external data, and nothing says in which folder"):
        save_model(load_model(pair), tmp_path / "m.onnx")


# Overwriting, and what may happen meanwhile


@pytest.fixture
def old(pair: Path, tmp_path: Path) -> Path:
    """An older output, a pair of its own."""
    (tmp_path / "out").mkdir()
    older = outside(mlp(**{**WIDE, "w1": (8, 64), "b1": np.zeros(64, np.float32)}), tmp_path / "older.onnx", "older")
    save_model(load_model(older), tmp_path / "out" / "m.onnx", folder=tmp_path)
    return tmp_path / "out" / "m.onnx"


def test_overwriting_asks_for_force(pair: Path, old: Path) -> None:
    with untouched(old.parent), pytest.raises(UsageError, match="exists"):
        save_model(load_model(pair), old, folder=pair.parent)


def test_overwriting_leaves_the_old_data(pair: Path, old: Path) -> None:
    """Somebody may read it at this moment, or have a copy of the old model."""
    before = contents(old.parent)
    copy = old.with_name("copy.onnx")
    copy.write_bytes(old.read_bytes())
    save_model(load_model(pair), old, folder=pair.parent, force=True)
    assert not weights(copy)["b1"].any()
    assert weights(old)["b1"].tobytes() == weights(pair)["b1"].tobytes()
    after = contents(old.parent)
    assert len(after) == 4
    assert all(after[name] == content for name, content in before.items() if name != old.name)


def test_data_that_are_there_already_are_not_written_again(old: Path) -> None:
    (name,) = data_of(old)
    before = old.with_name(name).stat()
    save_model(load_model(old), old, folder=old.parent, force=True)
    after = old.with_name(name).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("way", ["shorter", "other", "link"])
def test_data_under_that_name_which_are_not_the_same_are_replaced(old: Path, tmp_path: Path, way: str) -> None:
    (name,) = data_of(old)
    source = outside(onnx.load(old), tmp_path / "again.onnx", "again")
    content = old.with_name(name).read_bytes()
    old.with_name(name).unlink()
    match way:
        case "shorter":
            old.with_name(name).write_bytes(content[:-1])
        case "other":
            old.with_name(name).write_bytes(bytes(len(content)))
        case "link":
            (tmp_path / "elsewhere").write_bytes(content)
            old.with_name(name).symlink_to(tmp_path / "elsewhere")
    save_model(load_model(source), old, folder=tmp_path, force=True)
    assert data_of(old) == [name]
    assert old.with_name(name).read_bytes() == content
    assert not old.with_name(name).is_symlink()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [0, 1], ids=["data", "model"])
def test_failure_leaves_the_old_pair_and_nothing_else(
    pair: Path, old: Path, step: int, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, steps = Path.replace, iter(range(9))

    def fail(source: Path, target: Path) -> Path:
        if next(steps) == step:
            raise failure
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", fail)
    with untouched(old.parent), pytest.raises((MachineError, KeyboardInterrupt)):
        save_model(load_model(pair), old, folder=pair.parent, force=True)


DYING = """
import os, sys
from pathlib import Path
from onnxdpp.graph.model import load_model, save_model
source, out, suffix = sys.argv[1:]
replace = Path.replace
def die(path, target):
    if target.suffix == suffix:
        os._exit(9)
    return replace(path, target)
Path.replace = die
save_model(load_model(source), out, folder=Path(source).parent, force=True)
"""


@pytest.mark.parametrize(("suffix", "data_files_left"), [(".data", 1), (".onnx", 2)])
def test_crash_leaves_the_old_pair_and_the_next_save_sweeps(
    pair: Path, old: Path, suffix: str, data_files_left: int
) -> None:
    """The process ends, as if the power went, before the data or the model have their name."""
    before = contents(old.parent)
    ended = subprocess.run([sys.executable, "-c", DYING, pair, old, suffix], cwd=Path(__file__).parents[1])
    assert ended.returncode == 9
    after = contents(old.parent)
    assert before.items() <= after.items()
    assert sum(name.endswith(".data") for name in after) == data_files_left
    assert any(name.startswith(".") for name in after)
    save_model(load_model(old), old, folder=old.parent, force=True)  # other data than those that were half written
    assert not [name for name in contents(old.parent) if name.startswith(".")]
    assert not weights(old)["b1"].any()


KILLED = """
import sys
from pathlib import Path
from onnxdpp.graph.model import load_model, save_model
folders = [Path(argument) for argument in sys.argv[2:]]
models = [load_model(folder / "m.onnx") for folder in folders]
for turn in range(100_000):
    save_model(models[turn % 2], sys.argv[1], folder=folders[turn % 2], force=True)
    if turn == 1:
        print(flush=True)
    for file in Path(sys.argv[1]).parent.glob("onnxdpp-*.data"):  # so that data are written anew each turn
        if file.name.encode() not in Path(sys.argv[1]).read_bytes():
            file.unlink()
"""


def test_killed_at_any_time_leaves_a_whole_pair_and_the_next_save_sweeps(tmp_path: Path) -> None:
    folders = [tmp_path / "zeros", tmp_path / "ones"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        constant = {name: np.full((600, 600), number, np.float32) for name in ("w1", "w2")}
        text = "m (float[N, 600] x) => (float[N, 600] y) { a = MatMul(x, w1)  p = Relu(a)  y = MatMul(p, w2) }"
        outside(model(text, **constant), folder / "m.onnx")
    out = tmp_path / "out" / "m.onnx"
    out.parent.mkdir()
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, out, *folders], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.004 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = weights(out)
        assert found["w1"].tobytes() == found["w2"].tobytes()
    save_model(load_model(folders[0] / "m.onnx"), out, folder=folders[0], force=True)
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


@contextmanager
def full_disk() -> Iterator[None]:
    """Files of this process may become 8000 bytes large."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_that_does_not_take_the_data(pair: Path, old: Path) -> None:
    reason = r"Cannot write '.*\.data': File too large"
    with untouched(old.parent), full_disk(), pytest.raises(MachineError, match=reason):
        save_model(load_model(pair), old, folder=pair.parent, force=True)


def test_data_that_change_while_they_are_copied(pair: Path, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(*_: object, **__: object) -> None:
        pair.with_name("weights.bin").write_bytes(bytes(pair.with_name("weights.bin").stat().st_size))

    monkeypatch.setattr("onnxdpp.graph.model.check_output", spoil)
    with untouched(old.parent), pytest.raises(MachineError, match="changed while they were copied"):
        save_model(load_model(pair), old, folder=pair.parent, force=True)


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_output_is_the_data_of_the_input(
    pair: Path, tmp_path: Path, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "calib.npz", x=ROWS)
    target = pair.with_name("weights.bin")
    arguments = ["prune", pair, "--calib", tmp_path / "calib.npz", "--keep", 0.5, "--force", option, target]
    with untouched(pair.parent):
        assert "is the input" in refusal(invoke(capfd, *arguments), 2)


@pytest.mark.parametrize("flaw", ["missing", "truncated", "escape", "up"])
def test_bad_data_end_with_code_3(pair: Path, tmp_path: Path, flaw: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = pair.with_name("weights.bin")
    content = file.read_bytes()
    match flaw:
        case "missing":
            file.unlink()
        case "truncated":
            file.write_bytes(content[:-1])
        case "escape":
            file.rename(tmp_path / "moved")
            file.symlink_to(tmp_path / "moved")
        case "up":
            file.rename(tmp_path / "weights.bin")
            pair.write_bytes(pair.read_bytes().replace(b"weights.bin", b"../ghts.bin"))
    with untouched(tmp_path):
        ended: Outcome = invoke(capfd, "prune", pair, "--calib", "random:300", "--keep", 0.5)
    assert "external data" in refusal(ended, 3)


# Temporary files


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_scratch_holds_what_it_is_given(temporary: Path) -> None:
    arrays = {"a": np.arange(5000.0), "b": np.zeros((30, 40), np.float16).T, "small": np.ones(3)}
    scratch = Scratch()
    spilled = scratch.spilled(arrays)
    assert {key: array.tolist() for key, array in spilled.items()} == {key: a.tolist() for key, a in arrays.items()}
    assert [key for key, array in spilled.items() if mapped_from(array) is None] == ["small"]
    assert len(files(temporary)) == 2


def test_scratch_keeps_a_file_as_long_as_it_is_needed(temporary: Path) -> None:
    scratch = Scratch()
    first = scratch.spilled({"a": np.arange(5000.0), "b": np.arange(6000.0)})
    second = scratch.spilled({**first, "a": np.arange(7000.0)})
    assert sorted(file.stat().st_size for file in files(temporary)) == [48000, 56000]
    assert second["b"] is first["b"]
    assert first["a"].tolist() == np.arange(5000.0).tolist()


def test_scratch_takes_its_files_with_it(temporary: Path) -> None:
    scratch = Scratch()
    scratch.spilled({"a": np.arange(5000.0)})
    assert files(temporary)
    del scratch
    assert not list(temporary.iterdir())


def test_scratch_without_large_arrays_makes_no_folder(temporary: Path) -> None:
    Scratch().spilled({"a": np.arange(5.0)})
    assert not list(temporary.iterdir())


def test_scratch_on_a_full_disk(temporary: Path) -> None:
    with full_disk(), pytest.raises(MachineError, match=r"Cannot write 40000 bytes .*: File too large\. Set TMPDIR"):
        Scratch().spilled({"a": np.arange(5000.0)})


def test_temporary_files_go_with_the_result(pair: Path, temporary: Path) -> None:
    result = onnxdpp.prune(pair, {"x": ROWS}, keep=0.5, provider="cpu")
    assert files(temporary)
    del result
    assert not list(temporary.iterdir())


def test_model_in_one_file_needs_no_temporary_files(temporary: Path) -> None:
    result = onnxdpp.prune(mlp(**WIDE), {"x": ROWS}, keep=0.5, provider="cpu")
    assert result.report["layers"]
    assert not list(temporary.iterdir())


def test_mapped_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(24) + np.float32([1, 2, 3, 4]).tobytes())
    assert mapped(tmp_path / "file", np.dtype(np.float32), (2, 2), 24).tolist() == [[1, 2], [3, 4]]


# Memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory is anonymous")
def test_memory_is_a_quarter_of_a_large_model(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "samples" / "external.py"
    printed = subprocess.check_output([sys.executable, script, tmp_path, "--gib", "2.5", "--measure"], text=True)
    (line,) = (line for line in printed.splitlines() if line.startswith("| RssAnon"))
    assert float(line.split("|")[3]) <= 0.25

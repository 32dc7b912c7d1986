"""Model files: what is read, what is refused and with which words, and saving that survives what may happen to it."""

import errno
import gzip
import hashlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, numpy_helper, parser

from onnxdpp.errors import MachineError, ModelError, UsageError
from onnxdpp.graph.model import check_output, file_info, load_model, model_info, save_model

SHARED_MODELS = Path(__file__).parents[2] / "shared" / "models"
UNSOUND = "weights-missing"


def linear(weight: float = 1.0) -> onnx.ModelProto:
    """One MatMul (4 to 2)."""
    values = ", ".join([str(weight)] * 8)
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 2] y) <float[4, 2] W = {{{values}}}> {{ y = MatMul(x, W) }}
    """)


def external(location: str, **entries: str) -> onnx.ModelProto:
    """One MatMul (4 to 2) whose 32 bytes of weights stand in another file."""
    model = linear()
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    return model


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear().SerializeToString())
    return path


def refusal(path: Path, content: bytes | None = None) -> str:
    """Message with which a file is refused: one line that names the file."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert message.endswith(".")
    assert message.isprintable()
    return message


# Reading


@pytest.mark.skipif(not SHARED_MODELS.exists(), reason="no shared models here")
def test_load_real_models() -> None:
    paths = [path for path in sorted(SHARED_MODELS.rglob("*.onnx")) if UNSOUND not in path.name]
    assert len(paths) > 30
    for path in paths:
        assert load_model(path).graph.node, path


@pytest.mark.skipif(not SHARED_MODELS.exists(), reason="no shared models here")
def test_load_real_model_without_its_data() -> None:
    (path,) = SHARED_MODELS.glob(f"{UNSOUND}*.onnx")
    assert "'model.onnx.data' does not exist beside the model" in refusal(path)


def test_load_gives_the_proto_of_the_file(model_file: Path) -> None:
    assert load_model(model_file) == linear()
    assert load_model(str(model_file)) == linear()


@pytest.mark.parametrize("name", ["a b.onnx", "modèle 模型.onnx", "new\nline.onnx", "-o", "no_suffix"])
def test_load_unusual_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(linear().SerializeToString())
    assert load_model(name) == linear()


def test_load_through_symlink(model_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(model_file)
    assert load_model(link) == linear()


def test_load_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.onnx")
    assert "does not exist" in refusal(tmp_path / "no folder" / "none.onnx")


def test_load_below_a_file(model_file: Path) -> None:
    assert "Not a directory" in refusal(model_file / "model.onnx")


def test_load_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="File name too long"):
        load_model(tmp_path / ("x" * 300))


def test_load_name_with_null() -> None:
    with pytest.raises(ModelError, match="null byte"):
        load_model("a\0b")


def test_load_folder(tmp_path: Path) -> None:
    assert "is a folder. Name the .onnx file in it" in refusal(tmp_path)


def test_load_fifo_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in refusal(tmp_path / "fifo")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_load_unreadable(model_file: Path) -> None:
    model_file.chmod(0)
    assert "cannot be read: Permission denied" in refusal(model_file)


def test_load_unreadable_by_the_system(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in refusal(model_file)


def test_load_more_than_protobuf_reads(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    assert "has 2147483648 bytes" in refusal(path)


def zipped() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", linear().SerializeToString())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Run git lfs pull"),
        (gzip.compress(linear().SerializeToString(), mtime=0), "is a gzip archive"),
        (zipped(), "is a zip archive, perhaps a PyTorch .pt or a NumPy .npz"),
        (b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "is an HTML page"),
        ("\n <html lang='fr'>é</html>".encode(), "is an HTML page"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "is a PDF document"),
        (b'{"message": "Not Found"}', "is a JSON text"),
        (b"hello, this is no model", "is a plain text"),
        (b"\x18\x00\x00\x00ORTM\x00\x00\x00\x00", "is a model in ORT format"),
        (b"\x1c\x00\x00\x00TFL3\x14\x00 \x00", "is a TensorFlow Lite model"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "is an HDF5 file, perhaps a Keras model"),
        (b"\x93NUMPY\x01\x00v\x00", "is a NumPy array"),
        (b"\x80\x02}q\x00.", "is a Python pickle"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"w":{}}', "is a safetensors file"),
        (b"\xff\x00\xfd", "is no ONNX model, or one that is cut short"),
    ],
)
def test_load_something_else(tmp_path: Path, content: bytes, kind: str) -> None:
    assert kind in refusal(tmp_path / "m.onnx", content)


@pytest.mark.parametrize("kept", [0.5, 0.9, -1])
def test_load_truncated(tmp_path: Path, kept: float) -> None:
    content = linear().SerializeToString()
    end = int(kept * len(content)) if kept > 0 else -1
    assert "cut short" in refusal(tmp_path / "m.onnx", content[:end])


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"garbage", b"\xff" * 100])
def test_load_followed_by_garbage(tmp_path: Path, tail: bytes) -> None:
    assert "followed by other bytes" in refusal(tmp_path / "m.onnx", linear().SerializeToString() + tail)


def test_load_two_models_in_one_file(tmp_path: Path) -> None:
    # The second shares no name with the first: protobuf merges them into one valid model.
    second = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> h (float[N] a) => (float[N] b) { b = Relu(a) }'
    )
    content = linear().SerializeToString() + second.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    assert "holds 2 models" in refusal(tmp_path / "m.onnx", content)


def test_load_no_graph(tmp_path: Path) -> None:
    model = linear()
    model.ClearField("graph")
    assert "without a graph" in refusal(tmp_path / "m.onnx", model.SerializeToString())


def test_load_unsound_model_names_the_file(tmp_path: Path) -> None:
    model = linear()
    model.graph.node[0].input[0] = "nobody"
    assert "'MatMul' node that writes 'y' reads 'nobody'" in refusal(tmp_path / "m.onnx", model.SerializeToString())


def test_load_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in (b"\x08\x01\x0c", b"", b"\xff" * 20):
        refusal(tmp_path / "m.onnx", content)
    (tmp_path / "m.onnx").write_bytes(linear().SerializeToString())
    load_model(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


# External data


@pytest.mark.parametrize("location", ["weights", "sub/weights", "./weights"])
def test_load_external_data_leaves_them_outside(tmp_path: Path, location: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / location).write_bytes(bytes(32))
    (tmp_path / "m.onnx").write_bytes(external(location).SerializeToString())
    assert load_model(tmp_path / "m.onnx") == external(location)


def test_load_external_data_relative_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(bytes(32))
    (tmp_path / "m.onnx").write_bytes(external("weights").SerializeToString())
    monkeypatch.chdir(tmp_path)
    assert load_model("m.onnx") == external("weights")
    monkeypatch.chdir("/")
    assert load_model(tmp_path / "m.onnx") == external("weights")


@pytest.mark.parametrize("location", ["", "../weights", "a/../../weights", "/etc/passwd", "..\\weights", "C:\\weights"])
def test_load_external_data_outside(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights").write_bytes(bytes(32))
    folder = tmp_path / "folder"
    folder.mkdir()
    message = refusal(folder / "m.onnx", external(location).SerializeToString())
    assert "Initializer 'W' has external data" in message
    assert "no path inside of the model's folder" in message


def test_load_external_data_beside_the_link_to_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "m.onnx").write_bytes(external("weights").SerializeToString())
    (folder / "link.onnx").symlink_to(tmp_path / "m.onnx")
    (folder / "weights").write_bytes(bytes(32))
    assert load_model(folder / "link.onnx") == external("weights")


def test_load_external_data_link_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights").symlink_to(tmp_path / "secret")
    message = refusal(folder / "m.onnx", external("weights").SerializeToString())
    assert "a link that leads out of the model's folder" in message


def test_load_external_data_not_regular(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for location in ("folder", "fifo"):
        message = refusal(tmp_path / "m.onnx", external(location).SerializeToString())
        assert f"'{location}' is not a regular file" in message


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": "8"}, "says 32 at 8 of 'weights', which has 32"),
        ({"offset": "-8"}, "says 32 at -8"),
        ({"length": "16"}, "should be 32 bytes; the model says 16"),
        ({"offset": "many"}, "offset or length in 'weights' is no number"),
        ({"__class__": "x"}, "They have the unknown entry '__class__'"),
    ],
)
def test_load_external_data_of_another_extent(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    (tmp_path / "weights").write_bytes(bytes(32))
    assert reason in refusal(tmp_path / "m.onnx", external("weights", **entries).SerializeToString())


# Saving


def test_save_then_load(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    info = save_model(linear(), path)
    assert load_model(path) == linear()
    assert info == file_info(path) == model_info(linear())
    assert info.bytes == path.stat().st_size
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert names_in(tmp_path) == ["out.onnx"]


def test_file_info_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        file_info(tmp_path / "none.onnx")


def test_save_keeps_what_this_protobuf_does_not_know(tmp_path: Path) -> None:
    unknown = b"\xc2\x3e\x06future"  # field 1000, six bytes
    graph_unknown = linear()
    graph_unknown.graph.MergeFromString(unknown)
    (tmp_path / "in.onnx").write_bytes(graph_unknown.SerializeToString() + unknown)
    save_model(load_model(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    saved = (tmp_path / "out.onnx").read_bytes()
    assert saved.count(unknown) == 2
    assert sorted(saved) == sorted((tmp_path / "in.onnx").read_bytes())


def test_save_keeps_training_and_repeated_metadata(tmp_path: Path) -> None:
    model = linear()
    model.training_info.add().algorithm.name = "training"
    model.metadata_props.add(key="a", value="1")
    model.metadata_props.add(key="a", value="2")
    save_model(model, tmp_path / "m.onnx")
    assert load_model(tmp_path / "m.onnx") == model


def test_save_existing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_model(linear(1), path)
    with pytest.raises(UsageError, match=r"exists\. Use --force"):
        save_model(linear(2), path)
    assert load_model(path) == linear(1)
    save_model(linear(2), path, force=True)
    assert load_model(path) == linear(2)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
def test_save_mode_follows_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        save_model(linear(), tmp_path / "m.onnx")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.onnx").stat().st_mode) == mode


@pytest.mark.parametrize("name", ["a b.onnx", "new\nline", "-o", "x" * 255, "模" * 85, "[a].*"])
def test_save_unusual_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(linear(), name)
    assert names_in(tmp_path) == [name]


def test_save_over_symlink_replaces_the_link(tmp_path: Path) -> None:
    save_model(linear(1), tmp_path / "target.onnx")
    link = tmp_path / "link.onnx"
    link.symlink_to("target.onnx")
    with pytest.raises(UsageError, match="exists"):
        save_model(linear(2), link)
    save_model(linear(2), link, force=True)
    assert not link.is_symlink()
    assert load_model(tmp_path / "target.onnx") == linear(1)
    assert load_model(link) == linear(2)


def test_save_over_dangling_symlink(tmp_path: Path) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to("nowhere")
    with pytest.raises(UsageError, match="exists"):
        save_model(linear(), link)
    save_model(linear(), link, force=True)
    assert names_in(tmp_path) == ["link.onnx"]


def test_save_over_hard_link_leaves_the_other_name(tmp_path: Path) -> None:
    save_model(linear(1), tmp_path / "a.onnx")
    (tmp_path / "b.onnx").hardlink_to(tmp_path / "a.onnx")
    save_model(linear(2), tmp_path / "b.onnx", force=True)
    assert load_model(tmp_path / "a.onnx") == linear(1)


def test_save_model_too_large_for_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: onnx.ModelProto) -> bytes:
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr("onnxdpp.graph.model._serialized", refuse)
    with pytest.raises(ModelError, match="larger than 2147483647 bytes"):
        save_model(linear(), tmp_path / "m.onnx")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_save_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str) -> None:
    path = tmp_path / "m.onnx"
    save_model(linear(1), path)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(MachineError) as caught:
        save_model(linear(2), path, force=True)
    assert str(caught.value) == f"Cannot write {str(path)!r}: {os.strerror(code)}."
    assert load_model(path) == linear(1)
    assert names_in(tmp_path) == ["m.onnx"]


def test_save_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save_model(linear(1), path)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(linear(2), path, force=True)
    assert load_model(path) == linear(1)
    assert names_in(tmp_path) == ["m.onnx"]


def test_save_on_file_system_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    save_model(linear(), tmp_path / "m.onnx")
    assert load_model(tmp_path / "m.onnx") == linear()


def run_python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    header = """
        import os, sys, numpy as np, onnx
        from onnxdpp.errors import MachineError
        from onnxdpp.graph.model import load_model, save_model

        def model(value):
            weight = onnx.numpy_helper.from_array(np.full((512, 512), value, np.float32), "W")
            result = onnx.parser.parse_model(
                '<ir_version: 8, opset_import: ["": 17]> '
                'g (float[N, 512] x) => (float[N, 512] y) { y = MatMul(x, W) }')
            result.graph.initializer.append(weight)
            return result
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(header) + textwrap.dedent(script), *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )


def test_save_beyond_the_file_size_limit(tmp_path: Path) -> None:
    script = """
        import resource
        save_model(model(1), sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_model(model(2), sys.argv[1], force=True)
        except MachineError as error:
            print(error)
    """
    process = run_python(script, tmp_path / "m.onnx")
    output, _ = process.communicate(timeout=60)
    assert output.decode() == f"Cannot write {str(tmp_path / 'm.onnx')!r}: File too large.\n"
    assert numpy_helper.to_array(load_model(tmp_path / "m.onnx").graph.initializer[0])[0, 0] == 1
    assert names_in(tmp_path) == ["m.onnx"]


def test_save_killed_leaves_a_whole_file_and_the_next_save_sweeps(tmp_path: Path) -> None:
    script = """
        models = [model(value) for value in (1, 2)]
        for turn in range(100_000):
            save_model(models[turn % 2], sys.argv[1], force=True)
            if turn == 1:
                print(flush=True)
    """
    path = tmp_path / "m.onnx"
    for attempt in range(6):
        process = run_python(script, path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        weight = numpy_helper.to_array(load_model(path).graph.initializer[0])
        assert np.all(weight == weight[0, 0])
    save_model(linear(), path, force=True)
    assert names_in(tmp_path) == ["m.onnx"]


def test_save_sweeps_only_what_is_abandoned_and_its_own(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    target = tmp_path / "m+(1).onnx"  # no pattern
    abandoned = tmp_path / f".{target.name}.{gone.pid}-00.onnxdpp"
    same_pid = tmp_path / f".{target.name}.{os.getpid()}-00.onnxdpp"
    running = tmp_path / f".{target.name}.{os.getppid()}-00.onnxdpp"
    other_target = tmp_path / f".n.onnx.{gone.pid}-00.onnxdpp"
    locked = tmp_path / f".{target.name}.{gone.pid}-11.onnxdpp"
    for path in (abandoned, same_pid, running, other_target, locked):
        path.touch()
    with locked.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        save_model(linear(), target)
    assert set(names_in(tmp_path)) == {target.name, running.name, other_target.name, locked.name}


# Outputs


def test_output_new(model_file: Path, tmp_path: Path) -> None:
    check_output(tmp_path / "out.onnx", inputs=[model_file], force=False)
    assert names_in(tmp_path) == [model_file.name]


@pytest.mark.parametrize("way", ["name", "detour", "symlink", "hard link", "link to folder"])
def test_output_is_input(model_file: Path, tmp_path: Path, way: str) -> None:
    output = tmp_path / "out.onnx"
    match way:
        case "name":
            output = model_file
        case "detour":
            output = tmp_path / ".." / tmp_path.name / "model.onnx"
        case "symlink":
            output.symlink_to(model_file)
        case "hard link":
            output.hardlink_to(model_file)
        case "link to folder":
            (tmp_path / "folder").symlink_to(tmp_path)
            output = tmp_path / "folder" / "model.onnx"
    with pytest.raises(UsageError, match="is the input"):
        check_output(output, inputs=[tmp_path / "other", model_file], force=True)


def test_output_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the input"):
        check_output(tmp_path / "m.onnx", inputs=[tmp_path / "m.onnx"], force=True)


def test_output_in_another_case(model_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "MODEL.onnx"
    if other.exists():  # the file system does not tell cases apart
        with pytest.raises(UsageError, match="is the input"):
            check_output(other, inputs=[model_file], force=True)
    else:
        check_output(other, inputs=[model_file], force=True)


def test_output_exists(model_file: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        check_output(model_file, inputs=[], force=False)
    check_output(model_file, inputs=[], force=True)


def test_output_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path, inputs=[], force=True)
    for output in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(UsageError, match="is not a regular file"):
            check_output(output, inputs=[], force=True)


def test_output_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"folder of .*: No such file or directory"):
        check_output(tmp_path / "none" / "m.onnx", inputs=[], force=True)


def test_output_folder_is_a_file(model_file: Path) -> None:
    with pytest.raises(MachineError, match="Not a directory"):
        check_output(model_file / "m.onnx", inputs=[], force=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system here that takes no files")
def test_output_folder_takes_no_files() -> None:
    with pytest.raises(MachineError, match=r"Cannot write into the folder of '/proc/m\.onnx'"):
        check_output("/proc/m.onnx", inputs=[], force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_output_folder_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="Permission denied"):
        check_output(tmp_path / "m.onnx", inputs=[], force=False)

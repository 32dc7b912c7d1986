"""Folders for benchmark.py from four networks of others: model, unlabelled calibration rows, test rows.

    python samples/others.py --models DIR --data DIR --out DIR

`--models` and `--data` are those of real.py: ``manifest.csv`` and the .onnx files; MNIST, CIFAR-10 and ``datasets.py``.
Into a folder of `--out` for each go ``model.onnx`` with a free first axis, ``calib.npz`` (training images, evenly
spaced) and ``test.npz`` (test images, and ``labels`` where it is known what the model answers):

- ``deep-everest``: two convolutions with pools, then dense layers with ReLU; MNIST (MIT licence)
- ``mnist-5x20``: a perceptron of six narrow layers with leaky ReLU; MNIST (BSD)
- ``self-attention``: attention over patches, one dense layer of 32 that can be cut; MNIST (BSD)
- ``retinaface``: MobileNet with depthwise convolutions and a feature pyramid, 26 layers that can be cut. It looks for
  faces; it is given CIFAR-10 images, blue first, less the mean colour, and its first output is compared (Apache-2.0)
"""

import argparse
import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import real

MNIST = {
    "deep-everest": "uwdb__DeepEverest__mnist.onnx",
    "mnist-5x20": "NeuralNetworkVerification__Marabou__mnist5x20_leaky_relu.onnx",
    "self-attention": "NeuralNetworkVerification__Marabou__self-attention-sim.onnx",
}
MNIST_ROWS = 4000
FACES = "ShiqiYu__libfacedetection.train__retinaface_mbnet0.25.onnx"
FACES_ROWS = 2000  # of either kind: its cells take the longest
MEAN_COLOUR = (104, 117, 123)  # blue, green, red


def write(folder: Path, model: onnx.ModelProto, calib: np.ndarray, **test: np.ndarray) -> None:
    """Write the three files; `test` may hold labels."""
    folder.mkdir(parents=True, exist_ok=True)
    name = real.inputs(model)[0].name
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "calib.npz", **{name: calib})
    np.savez(folder / "test.npz", **{name: test.pop("rows")}, **test)
    print(f"{folder}: {len(calib)} calibration rows", file=sys.stderr)


def evenly(images: np.ndarray, rows: int) -> np.ndarray:
    """So many of the images, from the first to the last."""
    return images[np.linspace(0, len(images) - 1, rows).astype(int)]


def write_mnist(models: Path, data: Path, out: Path) -> None:
    """Write what the manifest says how to feed."""
    images = real.Images.of(data)
    with (models / "manifest.csv").open(newline="") as file:
        known = {row["file"]: row for row in csv.DictReader(file)}
    for name, file_name in MNIST.items():
        case = real.Case.of(known[file_name], models, images, MNIST_ROWS)
        write(out / name, case.dense, case.calib, rows=case.test, labels=images.labels)


def write_faces(models: Path, data: Path, out: Path) -> None:
    """Write the face detector, for small images of other things."""
    spec = importlib.util.spec_from_file_location("datasets", data / "datasets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    train, _, test, _ = module.cifar10()
    model = real.with_free_rows(onnx.load(models / FACES))
    calib, rows = (blue_first(evenly(images, FACES_ROWS)) for images in (train, test))
    write(out / "retinaface", model, calib, rows=rows)


def blue_first(pixels: np.ndarray) -> np.ndarray:
    """Images (rows, 3, 32, 32) as the detector wants them, from (rows, 3072), red first."""
    colours = pixels.reshape(-1, 3, 32, 32)[:, ::-1].astype(np.float32)
    return colours - np.array(MEAN_COLOUR, np.float32)[:, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Networks of others as folders for benchmark.py.", allow_abbrev=False)
    parser.add_argument("--models", type=Path, required=True, help="holds manifest.csv and the models")
    parser.add_argument("--data", type=Path, required=True, help="holds MNIST, CIFAR-10 and datasets.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the folders")
    arguments = parser.parse_args()
    write_mnist(arguments.models, arguments.data, arguments.out)
    write_faces(arguments.models, arguments.data, arguments.out)


if __name__ == "__main__":
    main()

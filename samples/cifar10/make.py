"""Train a 3072-1000-1000-1000-10 sigmoid network on CIFAR-10 until its training error is under 50 %, and export it.

    python samples/cifar10/make.py --data FOLDER --out FOLDER

`--data` holds the binary version of CIFAR-10 (data_batch_1.bin to data_batch_5.bin and test_batch.bin), or a
``datasets.py`` whose ``cifar10()`` returns the images; into `--out` go ``model.onnx`` (20 MB), ``calib.npz`` (50,000
training images, no labels, 614 MB) and ``test.npz`` (10,000 images with labels, 123 MB).

Pixels are scaled to mean 0 and deviation 1 in each colour, over the training images. SGD with learning rate 0.02,
momentum 0.9 and batches of 128 on the cross-entropy, float32 NumPy; the start is Xavier-uniform times 3, since three
layers of sigmoids hardly move from a smaller one. Network and stopping rule are those of Divnet (arXiv:1511.05077); no
test label is looked at but for the figure that is printed.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sigmoid_mlp

SEED = 0
GOAL = 0.5
MOST_EPOCHS = 30
PIXELS = 3 * 32 * 32
BATCHES = [f"data_batch_{number}.bin" for number in range(1, 6)]


def read_records(paths: list[Path]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read files of records: a byte for the label, 3072 for the pixels, red, green, blue."""
    records = []
    for path in paths:
        try:
            raw = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError:
            sys.exit(f"{path} is missing. Point --data at the folder of CIFAR-10's binary version (*.bin).")
        if not len(raw) or len(raw) % (1 + PIXELS):
            sys.exit(f"{path} holds {len(raw)} bytes, no multiple of {1 + PIXELS}; is this CIFAR-10's binary version?")
        records.append(raw.reshape(-1, 1 + PIXELS))
    whole = np.concatenate(records)
    return whole[:, 1:], whole[:, 0]


def read(folder: Path) -> tuple[NDArray[np.uint8], ...]:
    """Training images (r, 3072) and labels (r,), and those to test."""
    reader = folder / "datasets.py"
    if not reader.exists():
        return (*read_records([folder / name for name in BATCHES]), *read_records([folder / "test_batch.bin"]))
    spec = importlib.util.spec_from_file_location("datasets", reader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.cifar10())


def scaled(images: NDArray[np.uint8], mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> sigmoid_mlp.Array:
    """Pixels of mean 0 and deviation 1 in each colour."""
    colours = images.reshape(len(images), 3, -1).astype(np.float32)
    colours -= mean.astype(np.float32)[:, None]
    colours /= deviation.astype(np.float32)[:, None]
    return colours.reshape(len(images), -1)


def read_scaled(folder: Path) -> tuple[sigmoid_mlp.Array, sigmoid_mlp.Labels, sigmoid_mlp.Array, sigmoid_mlp.Labels]:
    """Training rows (r, 3072), each colour scaled by its mean and deviation over them, and labels; those to test."""
    images, labels, test_images, test_labels = read(folder)
    by_colour = images.reshape(len(images), 3, -1)
    mean, deviation = (np.array([f(by_colour[:, c], dtype=np.float64) for c in range(3)]) for f in (np.mean, np.std))
    x, x_test = scaled(images, mean, deviation), scaled(test_images, mean, deviation)
    return x, labels.astype(np.int64), x_test, test_labels.astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the CIFAR-10 sample and export it.", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with the six *.bin files, or a datasets.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.onnx, calib.npz, test.npz")
    arguments = parser.parse_args()

    x, y, x_test, y_test = read_scaled(arguments.data)
    rng = np.random.default_rng(SEED)
    start = sigmoid_mlp.initial([PIXELS, 1000, 1000, 1000, 10], rng, gain=3.0)
    began = time.perf_counter()
    with threadpool_limits(1):  # OpenBLAS sums in another order on another number of threads
        for epoch, parameters in enumerate(sigmoid_mlp.epochs(start, x, y, rng, rate=0.02), start=1):
            accuracy = sigmoid_mlp.accuracy(parameters, x, y)
            print(f"epoch {epoch}: train accuracy {accuracy:.4f}, {time.perf_counter() - began:.1f} s", flush=True)
            if accuracy > GOAL:
                break
            if epoch == MOST_EPOCHS:
                sys.exit(f"No epoch of {MOST_EPOCHS} reached {GOAL} training accuracy; nothing is written.")
    test = sigmoid_mlp.accuracy(parameters, x_test, y_test)
    print(f"dense: train accuracy {accuracy:.4f}, test accuracy {test:.4f}")

    model = sigmoid_mlp.to_onnx(parameters, "cifar10_3072_1000_1000_1000_10")
    sigmoid_mlp.write(arguments.out, model, x, x_test, y_test, compress=False)


if __name__ == "__main__":
    main()

"""Train a 784-500-500-10 sigmoid network on MNIST until it first has 97 % test accuracy, and export it.

    python samples/mnist/make.py --data FOLDER --out FOLDER

`--data` holds the four standard files (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the t10k
pair); into `--out` go ``model.onnx`` (2.6 MB), ``calib.npz`` (all 60,000 training images, no labels, 188 MB)
and ``test.npz`` (10,000 images with labels, 31 MB). The test accuracy of every epoch is printed.

Pixels are scaled to ``(p / 255 - 0.1307) / 0.3081``, the mean and deviation of the training pixels, as the
field does; a pixel that is always black is therefore a constant -0.42, not 0. SGD with learning rate 0.05,
momentum 0.9 and batches of 128 on the cross-entropy, Xavier-uniform start, float32 NumPy. *The stopping rule
looks at the test labels*: it fixes the accuracy that pruning starts from and is no estimate of how well such
a network does.
"""

import argparse
import gzip
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sigmoid_mlp

GOAL = 0.97
MOST_EPOCHS = 50
MEAN, DEVIATION = 0.1307, 0.3081
UNSIGNED_BYTES = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    The format: two zero bytes, the element type, the number of dimensions, each dimension as a big-endian
    32-bit integer, then the elements, last dimension fastest.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        sys.exit(f"{path} is missing. Point --data at the folder with the four MNIST files (*-ubyte.gz).")
    except (OSError, EOFError) as error:
        sys.exit(f"{path} cannot be read as gzip: {error}.")
    if len(raw) < 4 or raw[:3] != bytes([0, 0, UNSIGNED_BYTES]) or len(raw) < 4 + 4 * raw[3]:
        sys.exit(f"{path} is no IDX file of unsigned bytes: it begins with {raw[:4].hex(' ')}.")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=raw[3], offset=4))
    elements = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if elements.size != np.prod(shape):
        sys.exit(f"{path} declares {shape} elements and holds {elements.size}.")
    return elements.reshape(shape)


def read_pair(folder: Path, prefix: str) -> tuple[sigmoid_mlp.Array, sigmoid_mlp.Labels]:
    """Return the scaled images (r, 784) float32 and the labels (r,) of one half of MNIST."""
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        sys.exit(f"{folder}: {prefix} has images {images.shape} and labels {labels.shape}; is this MNIST?")
    x = images.reshape(len(images), -1).astype(np.float32)
    x /= np.float32(255)
    x -= np.float32(MEAN)
    x /= np.float32(DEVIATION)
    return x, labels


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the MNIST sample and export it.", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four *-ubyte.gz files")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.onnx, calib.npz, test.npz")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of start and order of rows (default 0)")
    arguments = parser.parse_args()

    x, y = read_pair(arguments.data, "train")
    x_test, y_test = read_pair(arguments.data, "t10k")
    rng = np.random.default_rng(arguments.seed)
    start = sigmoid_mlp.initial([784, 500, 500, 10], rng)
    began = time.perf_counter()
    with threadpool_limits(1):  # OpenBLAS sums in another order on another number of threads
        for epoch, parameters in enumerate(sigmoid_mlp.epochs(start, x, y, rng, rate=0.05), start=1):
            test = sigmoid_mlp.accuracy(parameters, x_test, y_test)
            print(f"epoch {epoch}: test accuracy {test:.4f}, {time.perf_counter() - began:.1f} s", flush=True)
            if test >= GOAL:
                break
            if epoch == MOST_EPOCHS:
                sys.exit(f"No epoch of {MOST_EPOCHS} reached {GOAL} test accuracy; nothing is written.")
    print(f"dense: train accuracy {sigmoid_mlp.accuracy(parameters, x, y):.4f}, test accuracy {test:.4f}")

    model = sigmoid_mlp.to_onnx(parameters, "mnist_784_500_500_10")
    sigmoid_mlp.write(arguments.out, model, x, x_test, y_test, compress=False)


if __name__ == "__main__":
    main()

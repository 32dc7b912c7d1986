"""Train a 64-500-500-10 sigmoid network on scikit-learn's digits and export it.

    python samples/digits/make.py [--out FOLDER]

Writes ``model.onnx`` (1.2 MB), ``calib.npz`` (the 1297 training images, no labels) and ``test.npz`` (the
other 500 images, with labels) beside this file, or into `--out`, and prints the accuracy on both parts. It
needs scikit-learn, which is in the development extra, and takes less than a minute.

Pixels are divided by 16, so they lie in [0, 1]. The split is one fixed permutation. Learning rate, batch and
number of epochs were chosen by five-fold cross-validation on the 1297 training images (accuracy 0.9645 after
200 epochs, 0.9653 after 300, 0.9645 after 400); the test labels were used for nothing but the figure printed.

The seed fixes everything up to the last bits of the matrix products: another BLAS build may give other bytes
and, 300 epochs later, an accuracy a few test images away.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sigmoid_mlp

SEED = 0
TRAIN_ROWS = 1297
EPOCHS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits sample and export it.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="default: beside me")
    arguments = parser.parse_args()

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.data))
    x = (digits.data[order] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    x, x_test = x[:TRAIN_ROWS], x[TRAIN_ROWS:]
    y, y_test = y[:TRAIN_ROWS], y[TRAIN_ROWS:]

    began = time.perf_counter()
    rng = np.random.default_rng(SEED)
    start = sigmoid_mlp.initial([64, 500, 500, 10], rng)
    with threadpool_limits(1):  # OpenBLAS sums in another order on another number of threads
        trained = sigmoid_mlp.epochs(start, x, y, rng, rate=0.1, batch=32)
        parameters = next(itertools.islice(trained, EPOCHS - 1, None))
    print(f"{EPOCHS} epochs in {time.perf_counter() - began:.1f} s")
    print(
        f"dense: train accuracy {sigmoid_mlp.accuracy(parameters, x, y):.4f}, "
        f"test accuracy {sigmoid_mlp.accuracy(parameters, x_test, y_test):.4f}"
    )

    model = sigmoid_mlp.to_onnx(parameters, "digits_64_500_500_10")
    sigmoid_mlp.write(arguments.out, model, x, x_test, y_test, compress=True)


if __name__ == "__main__":
    main()

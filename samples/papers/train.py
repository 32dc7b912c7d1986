"""Train the papers' networks with PyTorch until the published thresholds, and export them as ONNX.

    python samples/papers/train.py --dataset mnist|cifar10 --data FOLDER --out FOLDER

======== ======================== ================== ================================ =====================
dataset  network, sigmoid         stops when the     normalised to                    steps
                                  training error is
======== ======================== ================== ================================ =====================
mnist    784-500-500-10           under 1 %          (p / 255 - 0.1307) / 0.3081      SGD, 0.1
cifar10  3072-1000-1000-1000-10   under 50 %         mean 0, deviation 1 by colour    SGD, 0.1
======== ======================== ================== ================================ =====================

Momentum 0.9, batches of 128, cross-entropy, Xavier-uniform weights, zero biases: as the code of arXiv:2006.16617 has
them, whose learning rate and number of epochs are not recorded. The *training* error alone, over all training rows at
the end of each epoch, says when to stop; no test label is looked at but for the figure that is printed at the end. One
thread and a fixed seed: the same PyTorch on the same kind of processor gives the same weights.

Into `--out` go ``model.onnx`` (opset 17, Gemm and Sigmoid nodes), ``calib.npz`` (all training rows, no labels) and
``test.npz`` (10,000 rows with labels): what `reproduce.py` reads.

References
----------
Z. Mariet, S. Sra: Diversity Networks, ICLR 2016, arXiv:1511.05077. R. Acharyya et al.: Statistical Mechanical Analysis
of Neural Network Pruning, UAI 2021, arXiv:2006.16617.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sigmoid_mlp

SAMPLES = Path(__file__).resolve().parents[1]
SEED = 0
MOMENTUM = 0.9
BATCH = 128
MOST_EPOCHS = 200

Rows = tuple[sigmoid_mlp.Array, sigmoid_mlp.Labels, sigmoid_mlp.Array, sigmoid_mlp.Labels]
"""Training rows (r, n) and labels (r,), rows to test and theirs."""


@dataclass(frozen=True)
class Recipe:
    """What is trained, how fast, and until when.

    Attributes
    ----------
    widths : tuple of int
        From the inputs to the classes.
    rate : float
        Learning rate.
    goal : float
        The training error to fall below, a fraction.
    read : callable (folder) -> Rows
    """

    widths: tuple[int, ...]
    rate: float
    goal: float
    read: Callable[[Path], Rows]


def _other(sample: str) -> ModuleType:
    """The make.py of another sample: it reads the standard files."""
    spec = importlib.util.spec_from_file_location(f"{sample}_make", SAMPLES / sample / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_mnist(folder: Path) -> Rows:
    """Both halves of MNIST, scaled, from its four IDX files."""
    make = _other("mnist")
    return (*make.read_pair(folder, "train"), *make.read_pair(folder, "t10k"))


def read_cifar10(folder: Path) -> Rows:
    """Both halves of CIFAR-10, scaled, from its binary version."""
    rows: Rows = _other("cifar10").read_scaled(folder)
    return rows


RECIPES = {
    "mnist": Recipe((784, 500, 500, 10), 0.1, 0.01, read_mnist),
    "cifar10": Recipe((3072, 1000, 1000, 1000, 10), 0.1, 0.5, read_cifar10),
}


def epochs(
    start: sigmoid_mlp.Parameters, x: sigmoid_mlp.Array, y: sigmoid_mlp.Labels, rate: float
) -> Iterator[sigmoid_mlp.Parameters]:
    """Train without end, yielding the parameters after each pass over the shuffled rows.

    Raises
    ------
    SystemExit
        If PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is missing. Install the extra: pip install -e '.[papers]'.")
    torch.set_num_threads(1)  # sums come in another order on another number of threads
    generator = torch.Generator().manual_seed(SEED)
    layers: list[torch.nn.Module] = []
    for weight, bias in start:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
        layers += [layer, torch.nn.Sigmoid()]
    network = torch.nn.Sequential(*layers[:-1])
    step = torch.optim.SGD(network.parameters(), lr=rate, momentum=MOMENTUM)
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    while True:
        for batch in torch.randperm(len(rows), generator=generator).split(BATCH):
            step.zero_grad()
            torch.nn.functional.cross_entropy(network(rows[batch]), labels[batch]).backward()
            step.step()
        flat = [parameter.detach().numpy().copy() for parameter in network.parameters()]
        yield list(zip(flat[::2], flat[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one of the papers' networks.", allow_abbrev=False)
    parser.add_argument("--dataset", choices=RECIPES, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with the standard files; see fetch.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.onnx, calib.npz, test.npz")
    arguments = parser.parse_args()

    recipe = RECIPES[arguments.dataset]
    x, y, x_test, y_test = recipe.read(arguments.data)
    start = sigmoid_mlp.initial(recipe.widths, np.random.default_rng(SEED))
    began = time.perf_counter()
    for epoch, parameters in enumerate(epochs(start, x, y, recipe.rate), start=1):
        error = 1 - sigmoid_mlp.accuracy(parameters, x, y)
        print(f"epoch {epoch}: training error {error:.4f}, {time.perf_counter() - began:.1f} s", flush=True)
        if error < recipe.goal:
            break
        if epoch == MOST_EPOCHS:
            sys.exit(f"No epoch of {MOST_EPOCHS} brought the training error under {recipe.goal}; nothing is written.")
    test = 1 - sigmoid_mlp.accuracy(parameters, x_test, y_test)
    print(f"unpruned: training error {error:.4f}, test error {test:.4f}")
    model = sigmoid_mlp.to_onnx(parameters, f"{arguments.dataset}_{'_'.join(map(str, recipe.widths))}")
    sigmoid_mlp.write(arguments.out, model, x, x_test, y_test, compress=False)


if __name__ == "__main__":
    main()

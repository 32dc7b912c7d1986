"""The DPP engine beside DPPy, on edge kernels of trained networks. A command, not a test.

    pip install dppy threadpoolctl
    python tests/benchmarks/dpp.py --data ../shared/data            # single kernels, about 5 minutes
    python tests/benchmarks/dpp.py --data ../shared/data --layers   # and whole layers on two workers

Single kernels: CPU seconds, one BLAS thread, median of five (fewer where one takes long), a whole draw with its set-up,
the kernel given. The networks (784-500-500-10, 3072-1000-1000-10, sigmoid, SGD, seed 0) are trained here once,
in NumPy, and cached in the temporary folder. The kernel is that of the edges into hidden neuron 7, epsilon 0.01, with
beta = 10 (the papers') and with beta = 1 / median d².
"""

import argparse
import importlib
import os
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from onnxdpp.algebra.dpp import KDPPSampler, maximise_k_dpp, sample_k_dpp
from onnxdpp.algebra.edges import EdgeKernel, maximise_edges, sample_edges
from onnxdpp.algebra.kernels import edge_gram, median_squared_distance, rbf_kernel
from onnxdpp.algebra.moments import Moments
from onnxdpp.algebra.refit import refit_edges

EPSILON, NEURON = 0.01, 7
SETS = {  # loader, mean, deviation, hidden width, epochs
    "mnist": ("mnist", 0.1307, 0.3081, 500, 6),
    "cifar": ("cifar10", 0.5, 0.5, 1000, 2),
}


def train(x, y, hidden, epochs, rate=0.05, momentum=0.9, batch=128):
    """First-layer weights and biases of a sigmoid network after some epochs of SGD on the cross-entropy."""
    rng = np.random.default_rng(0)
    sizes = [x.shape[1], hidden, hidden, 10]
    weights = [(rng.uniform(-1, 1, (a, b)) * np.sqrt(6 / (a + b))).astype(np.float32) for a, b in pairwise(sizes)]
    parameters = weights + [np.zeros(b, np.float32) for b in sizes[1:]]
    velocities = [np.zeros_like(p) for p in parameters]
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for low in range(0, len(x) - batch + 1, batch):
            rows = order[low : low + batch]
            active = [x[rows]]
            for w, b in zip(weights[:2], parameters[3:5], strict=True):
                active.append(1 / (1 + np.exp(-(active[-1] @ w + b))))
            logits = active[2] @ weights[2] + parameters[5]
            delta = np.exp(logits - logits.max(axis=1, keepdims=True))
            delta /= delta.sum(axis=1, keepdims=True)
            delta[np.arange(batch), y[rows]] -= 1
            delta /= batch
            for layer in (2, 1, 0):
                gradients = active[layer].T @ delta, delta.sum(axis=0)
                if layer:
                    delta = (delta @ weights[layer].T) * active[layer] * (1 - active[layer])
                for index, gradient in zip((layer, layer + 3), gradients, strict=True):
                    velocities[index] *= momentum
                    velocities[index] -= rate * gradient
                    parameters[index] += velocities[index]
    return weights[0].astype(np.float64)


def first_layer(name, data):
    """Moments of the first layer of the network trained on this set."""
    cache = Path(tempfile.gettempdir()) / f"onnxdpp-benchmark-{name}.npz"
    if not cache.exists():
        loader, mean, deviation, hidden, epochs = SETS[name]
        sys.path.insert(0, str(data))
        x, y, _, _ = getattr(importlib.import_module("datasets"), loader)()
        x = ((x / np.float32(255)) - np.float32(mean)) / np.float32(deviation)
        gram = sum(block.T @ block for block in (x[i : i + 5000].astype(np.float64) for i in range(0, len(x), 5000)))
        np.savez(
            cache,
            count=len(x),
            weights=train(x, y, hidden, epochs),
            gram=gram / len(x),
            mean_x=x.mean(axis=0, dtype=np.float64),
        )
    with np.load(cache) as arrays:
        count, weights, gram, mean = (arrays[key] for key in ("count", "weights", "gram", "mean_x"))
    cross = gram @ weights
    return Moments(
        count=int(count),
        weights=weights,
        gram=gram,
        mean_x=mean,
        cross=cross,
        mean_y=mean @ weights,
        power_y=np.einsum("ij,ij->j", weights, cross),
    )


def cpu_seconds(function, repeats=5):
    """Median CPU time of a call, or what it died of."""
    taken = []
    while len(taken) < repeats:
        start = time.process_time()
        try:
            function()
        except (ValueError, FloatingPointError) as error:
            return f"fails: {error}"
        taken.append(time.process_time() - start)
        if taken[0] > 5:
            repeats = min(repeats, 3)
    return float(np.median(taken))


def dppy_as_shipped(likelihood, k):
    from dppy.finite_dpps import FiniteDPP

    with np.errstate(all="ignore"):
        return FiniteDPP("likelihood", L=likelihood + EPSILON * np.eye(len(likelihood))).sample_exact_k_dpp(k)


def dppy_repaired(likelihood, k, rng):
    """DPPy's eigendecomposition and its phase 2, between them the choice of eigenvectors in log space."""
    from dppy.exact_sampling import proj_dpp_sampler_eig
    from scipy.linalg import eigh

    values, vectors = eigh(likelihood + EPSILON * np.eye(len(likelihood)))
    logs = np.log(np.maximum(values, 1e-300))
    table = np.full((len(values) + 1, k + 1), -np.inf)  # row i: log e_0..e_k of the first i values
    table[:, 0] = 0.0
    for i, log_value in enumerate(logs):
        table[i + 1, 1:] = np.logaddexp(table[i, 1:], table[i, :-1] + log_value)
    picked, degree = [], k
    for i in range(len(values), 0, -1):
        if degree and rng.random() < np.exp(logs[i - 1] + table[i - 1, degree - 1] - table[i, degree]):
            picked.append(i - 1)
            degree -= 1
    return proj_dpp_sampler_eig(vectors[:, picked], "GS")


def show(value):
    return value if isinstance(value, str) else f"{value:.4f}"


def ratio(other, own):
    return "" if isinstance(other, str) else f"{other / own:.1f}x"


def single_kernels(name, moments, sizes):
    for beta in (10.0, 1.0 / median_squared_distance(moments.gram, moments.weights)):
        likelihood = rbf_kernel(edge_gram(moments.gram, moments.weights[:, NEURON]), beta)
        eigh = cpu_seconds(lambda matrix=likelihood: np.linalg.eigh(matrix))
        for k in sizes:
            cells = [f"{name} ({len(likelihood)}, {k})", f"{beta:.4g}", *one_kernel(likelihood, k, eigh)]
            print("| " + " | ".join(cells) + " |", flush=True)


def one_kernel(likelihood, k, eigh):
    rng, sampler = np.random.default_rng(0), KDPPSampler(EPSILON)
    sampler.draw(likelihood, k, rng)
    one = cpu_seconds(lambda: sample_k_dpp(likelihood, k, epsilon=EPSILON, rng=rng))
    following = cpu_seconds(lambda: sampler.draw(likelihood, k, rng))
    mode = cpu_seconds(lambda: maximise_k_dpp(likelihood, k, epsilon=EPSILON))
    shipped = cpu_seconds(lambda: dppy_as_shipped(likelihood, k))
    repaired = cpu_seconds(lambda: dppy_repaired(likelihood, k, rng))
    cells = [show(one), show(following), show(shipped), ratio(shipped, one), show(repaired), ratio(repaired, one)]
    return [*cells, show(mode), show(eigh), ratio(eigh, mode)]


def whole_layers(moments, k, beta, method, workers=2):
    """Kernels, choice and refit of every output, as `prune --unit edge` does them."""
    kernel, n, m = EdgeKernel(moments.gram, beta), *moments.weights.shape
    with ThreadPoolExecutor(workers) as executor:
        clock = [(time.perf_counter(), time.process_time())]
        if method == "mode":
            variances = moments.variance_x
            kept = maximise_edges(kernel, moments.weights, k, epsilon=EPSILON, variances=variances, executor=executor)
        else:
            seed = np.random.SeedSequence(0)
            kept = sample_edges(kernel, moments.weights, k, epsilon=EPSILON, seed=seed, executor=executor)
        clock.append((time.perf_counter(), time.process_time()))
        refit_edges(moments, kept, "affine", executor)
        clock.append((time.perf_counter(), time.process_time()))
    (wall, cpu), (refit_wall, refit_cpu) = np.diff(clock, axis=0)
    flops = m * (n * k * k if method == "mode" else n**3 / 3), m * k**3 / 3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{m} {method}s of ({n}, {k}), beta {beta:.4g}, {workers} workers: "
        f"choice {wall:.1f} s wall, {cpu:.1f} s CPU; refit {refit_wall:.1f} s wall, {refit_cpu:.1f} s CPU; "
        f"flops {flops[0]:.3g} + {flops[1]:.3g}; peak {peak:.2f} GiB",
        flush=True,
    )


def gemm_speed(n=2000):
    a = np.random.default_rng(0).normal(size=(n, n))
    return 2 * n**3 / cpu_seconds(lambda: a @ a)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with datasets.py")
    parser.add_argument("--layers", action="store_true", help="whole layers as well")
    parser.add_argument("--only", choices=SETS, help="one of the two sets")
    options = parser.parse_args()
    names = [options.only] if options.only else list(SETS)
    with threadpool_limits(1):
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__};", end=" ")
        print(f"gemm {gemm_speed() / 1e9:.0f} Gflop/s on one thread. CPU seconds.\n")
        print("| kernel (n, k) | beta | draw | next draw | DPPy | | DPPy repaired | | mode | eigh | eigh / mode |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        layers = {name: first_layer(name, options.data) for name in names}
        for name, moments in layers.items():
            single_kernels(name, moments, {"mnist": (157, 627), "cifar": (614,)}[name])
        if options.layers:
            print()
            for name, moments in layers.items():
                beta = 1.0 / median_squared_distance(moments.gram, moments.weights)
                for chosen in (10.0, beta):
                    if name == "mnist":
                        whole_layers(moments, 157, chosen, "draw")
                    whole_layers(moments, {"mnist": 157, "cifar": 614}[name], chosen, "mode")


if __name__ == "__main__":
    main()

"""How many neurons of each layer its DPP itself would keep: the mean size of a draw from the L-ensemble.

What Divnet lets the DPP choose (`expected_neurons`), asked of the original: one pass over the data for each layer,
nothing pruned before it. So it is, rounded, what ``prune(keep="auto", method="dpp")`` keeps of a layer pruned alone
(one neuron of each section at least). Behind layers that are pruned too, and with method ``auto``, which holds rows
out, the moments differ a little, and the size with them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from threadpoolctl import threadpool_limits

from onnxdpp.algebra.selection import expected_neurons
from onnxdpp.errors import DataError
from onnxdpp.graph.batches import Batches
from onnxdpp.graph.calibration import cores
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.walking import quoted
from onnxdpp.observation import observe, readings_of
from onnxdpp.options import Options


def expected_sizes(
    graph: Graph,
    layers: Sequence[Layer],
    options: Options,
    batches: Batches,
    provider: str,
    progress: Callable[[str, float], None] = lambda text, fraction: None,
) -> tuple[dict[str, float], list[str]]:
    """The expected size of every layer's L-ensemble.

    Parameters
    ----------
    graph : Graph
    layers : sequence of Layer
    options : Options
        Kernel, beta and epsilon; mask, memory and seed of what is observed.
    batches : Batches
        Calibration data.
    provider : {"cpu", "cuda"}
    progress : callable (text, fraction)

    Returns
    -------
    dict, list of str
        The size, from 0 to n, by the layer's name; and one line for each reason why layers have none.

    Raises
    ------
    DataError
        If the data give none of the layers a size.
    """
    sizes: dict[str, float] = {}
    failed: dict[str, list[str]] = {}
    last: DataError | None = None
    with threadpool_limits(1), ThreadPoolExecutor(cores()) as executor:
        for layer in layers:
            wanted = readings_of(graph, layer, options.memory)
            try:
                observed, _ = observe(
                    graph, graph, wanted, batches, provider, options, executor,
                    partial(progress, layer.name), layer.name,
                )  # fmt: skip
                sizes[layer.name] = expected_neurons(observed, layer.n, options.rule)
            except (DataError, ValueError) as error:
                failed.setdefault(str(error), []).append(quoted(layer.name))
                last = error if isinstance(error, DataError) else last
    if last is not None and not sizes:
        raise last
    return sizes, [f"No expected size of {', '.join(names)}: {reason}" for reason, names in failed.items()]

"""The Python interface of `onnxdpp inspect`: what of a model can be pruned, and what cannot, and why."""

from dataclasses import asdict
from typing import Any

from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.calibration import choose_provider
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import find_layers
from onnxdpp.graph.padding import check_mask
from onnxdpp.graph.projections import find_projections, weighted_nodes
from onnxdpp.graph.rewriting import in_order
from onnxdpp.opening import Data, Model, Progress, opened, size_of, versions
from onnxdpp.options import Options
from onnxdpp.report import FoundLayer, Inspection
from onnxdpp.sizing import expected_sizes
from onnxdpp.verifying import Verdict
from onnxdpp.verifying import verify as check_layers


def inspect(
    model: Model,
    *,
    verify: bool = False,
    calib: Data | None = None,
    kernel: str = "rbf",
    beta: float | None = None,
    epsilon: float = 0.01,
    seed: int = 0,
    provider: str = "auto",
    max_rows: int | None = None,
    mask: str | None = None,
    progress: Progress = lambda text, fraction: None,
) -> dict[str, Any]:
    """What of a model can be pruned, and what cannot, and why.

    Parameters
    ----------
    model : path or ModelProto
    verify : bool
        Put each layer to the two tests of `onnxdpp.verifying`, by running the model.
    calib : as for `prune`, optional
        Where it is given: find the size of each layer's own DPP on it, as `onnxdpp.sizing` does. Its first batch is
        what `verify` runs (default: ``"random:8"``).
    kernel, beta, epsilon : as for `prune`
        Of that DPP.
    seed : int
    provider : {"auto", "cpu", "cuda"}
    max_rows : int, optional
        Rows to use, evenly spaced.
    mask : as for `prune`, optional
    progress : callable (text, fraction), optional

    Returns
    -------
    dict
        As the JSON Schema ``inspection`` says.

    Raises
    ------
    UsageError, ModelError, DataError, MachineError
        All of them OnnxdppError; see `onnxdpp.errors`.
    """
    options = Options(
        "auto", method="dpp", kernel=kernel, beta=beta, epsilon=epsilon, seed=seed, provider=provider,
        max_rows=max_rows, mask=mask,
    )  # fmt: skip
    proto, folder, info = opened(model)
    graph = Graph(in_order(proto), folder)
    check_mask(mask, inputs := input_specs(graph.model))
    layers, no_neurons = find_layers(graph)
    projections, no_edges = find_projections(graph)
    operators = {name: graph.nodes[index].op_type for index, name in weighted_nodes(graph).items()}
    verdicts: dict[str, Verdict] = {}
    sizes: dict[str, float] = {}
    notices: list[str] = []
    if layers and (verify or calib is not None):
        where, told = choose_provider(provider)
        source = "random:8" if calib is None else calib
        batches = open_batches(source, inputs, max_rows=options.max_rows, seed=options.seed)
        if verify:
            tested = check_layers(graph, layers, next(iter(batches)), where, options.seed, progress)
            verdicts = {part.name: part for part in tested}
        if calib is not None:
            sizes, failed = expected_sizes(graph, layers, options, batches, where, progress)
            notices = [*told, *batches.notices, *failed]
            if batches.random:
                notices.append("The calibration data are random: on others the DPP's own sizes differ.")
    found = [
        FoundLayer(
            layer.name, operators[layer.name], "neuron", layer.n, sum(part.m for part, _ in layer.consumers),
            list(layer.members), [part.name for part, _ in layer.consumers],
            asdict(verdicts[layer.name]) if layer.name in verdicts else None, sizes.get(layer.name),
        )
        for layer in layers
    ]  # fmt: skip
    found += [FoundLayer(part.name, operators[part.name], "edge", part.n, part.m) for part in projections]
    refusals = [(refusal.name, "neuron", refusal.reason) for refusal in no_neurons]
    refusals += [(refusal.name, "edge", refusal.reason) for refusal in no_edges]
    return Inspection(
        size_of(graph, info, None), graph.opset, proto.producer_name, found, refusals, notices, versions()
    ).as_dict()

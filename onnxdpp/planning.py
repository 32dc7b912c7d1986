"""What will be pruned, how much of it stays, and what is left alone and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnxdpp.errors import NothingToPrune, UsageError
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer, find_layers
from onnxdpp.graph.projections import Projection, Refusal, find_projections
from onnxdpp.options import Options


@dataclass(frozen=True)
class Target:
    """One layer (neurons) or projection (edges), and how many of its `n` stay.

    Attributes
    ----------
    keep : tuple of int or None
        Which neurons stay, where that was decided before.
    start : tuple of int or None
        Which neurons to begin with, where only some shall be swapped for others.
    own_size : bool
        Whether the layer's DPP says how many stay; `k` is the width until then.
    """

    part: Layer | Projection
    k: int
    keep: tuple[int, ...] | None = None
    start: tuple[int, ...] | None = None
    own_size: bool = False

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.part.name

    @property
    def consumers(self) -> tuple[Projection, ...]:
        """The projections that are refitted."""
        if isinstance(self.part, Projection):
            return (self.part,)
        return tuple(projection for projection, _ in self.part.consumers)


@dataclass(frozen=True)
class Plan:
    """What will be pruned, and what is left alone and why."""

    targets: tuple[Target, ...]
    refusals: tuple[Refusal, ...]


def plan(graph: Graph, options: Options) -> Plan:
    """Decide which layers are pruned, and how many neurons or edges of each stay.

    Parameters
    ----------
    graph : Graph
    options : Options

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    NothingToPrune
        If no layer is left to prune.
    """
    found: Sequence[Layer | Projection]
    found, refused = find_layers(graph) if options.unit == "neuron" else find_projections(graph)
    names = [part.name for part in found] + [refusal.name for refusal in refused]
    for pattern in (*(pattern for pattern, _ in options.layers), *options.skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(repr(part.name) for part in found[:8]) or "none"
            raise UsageError(f"The pattern {pattern!r} matches no layer. Layers that can be pruned: {some}.")
    targets = []
    applied = None if options.apply is None else _decided(found, options.apply)
    for part in found:
        if applied is not None and part.name not in applied:
            continue
        keep, reason = _wish(part.name, options)
        if reason is None and isinstance(part, Projection) and 8 * part.n**2 > options.memory:
            reason = f"the moments of its {part.n} inputs would take {8 * part.n**2} bytes, more than memory allows"
        if reason is None and applied is not None:
            targets.append(applied[part.name])
        elif reason is None:
            least = 1 if isinstance(part, Projection) else part.least
            own_size = keep is None and options.keep == "auto"
            targets.append(Target(part, max(least, options.count(keep, part.n)), own_size=own_size))
        else:
            refused.append(Refusal(part.name, reason))
    if not targets:
        reasons = [(refusal.name, refusal.reason) for refusal in refused]
        why = "its graph has no Gemm, MatMul or Conv"
        if reasons:
            why = (
                f"none of {len(reasons)} candidate layers may be cut"
                if reasons[1:]
                else "its one candidate layer may not be cut"
            )
        raise NothingToPrune(f"Nothing can be pruned: {why}.", reasons)
    return Plan(tuple(targets), tuple(refused))


def _decided(
    found: Sequence[Layer | Projection], apply: Sequence[tuple[str, int, tuple[int, ...]]]
) -> dict[str, Target]:
    """The layers of an earlier report by name, with the neurons that stayed."""
    layers = {part.name: part for part in found}
    targets = {}
    for name, width, keep in apply:
        if name not in layers:
            raise UsageError(f"The report has a layer {name!r}, which this model has not: is it of another model?")
        if layers[name].n != width:
            raise UsageError(f"Layer {name!r} has {layers[name].n} neurons, {width} in the report: another model?")
        layer = layers[name]
        if isinstance(layer, Layer) and len(set(layer.sections[list(keep)].tolist())) < layer.least:
            raise UsageError(f"Of layer {name!r} {layer.least} sections must keep a neuron each: another model?")
        targets[name] = Target(layer, len(keep), keep)
    return targets


def _wish(name: str, options: Options) -> tuple[float | None, str | None]:
    """The keep that the options give the layer `name` alone, if any; or the reason why it is left as it is."""
    for pattern in options.skip:
        if fnmatchcase(name, pattern):
            return None, f"protected by --skip {pattern}"
    matches = [keep for pattern, keep in options.layers if fnmatchcase(name, pattern)]
    if options.layers and not matches:
        return None, "no --layer pattern names it"
    return (matches[-1] if matches else None), None

"""A use-def index over a ModelProto: who makes a value, who reads it, which values are constants.

The proto is read, never changed. Nodes are named by their position in ``model.graph.node``; a constant is named
by where it is read, a `Use` (node, slot), since two readers of one tensor may come to need different tensors.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from onnxdpp.graph.attributes import Array, attribute
from onnxdpp.graph.external import tensor_array
from onnxdpp.graph.folding import FOLDING, folded
from onnxdpp.graph.walking import captured_names, is_external, nodes_below, quoted, read_names

__all__ = ["ONNX_DOMAINS", "RANDOM", "Array", "Graph", "Setting", "Use", "attribute"]

ONNX_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, order=True)
class Use:
    """Input number `slot` of node number `node`."""

    node: int
    slot: int


@dataclass(frozen=True, order=True)
class Setting:
    """Attribute `name` of node number `node`."""

    node: int
    name: str


class Graph:
    """Use-def index of the main graph of `model`, whose nodes stand in topological order.

    Parameters
    ----------
    model : ModelProto
    folder : path, optional
        Where external data lie; without it, tensors in external data are no constants that can be read.

    Attributes
    ----------
    nodes : list of NodeProto
    producer : dict, value name -> number of the node that makes it
    uses : dict, value name -> list of Use, in the order of nodes
    captured : dict, value name -> number of the node whose body (If, Loop, Scan) reads it
    outputs : set of value names that the graph gives out
    opset : int, version of the default domain (0 where it is not imported)
    overridable : set of names of initializers that callers may override
    """

    def __init__(self, model: ModelProto, folder: Path | None = None) -> None:
        self.model = model
        self.folder = folder
        graph = model.graph
        self.nodes = list(graph.node)
        self.outputs = {value.name for value in graph.output}
        self.producer: dict[str, int] = {}
        self.uses: dict[str, list[Use]] = {}
        self.captured: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in node.output:
                if name:
                    self.producer[name] = index
            for slot, name in enumerate(node.input):
                if name:
                    self.uses.setdefault(name, []).append(Use(index, slot))
            for name in captured_names(node):
                self.captured.setdefault(name, index)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        listed = {value.name for value in graph.input}
        # Before IR version 4 every initializer had to be listed among the inputs; since then, listing one means
        # that a caller may override it.
        self.overridable = listed & self._initializers.keys() if model.ir_version >= 4 else set()
        self.inputs = [value for value in graph.input if value.name not in self._initializers]
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 0)
        self.functions = {(function.domain, function.name) for function in model.functions}

    def name_at(self, use: Use) -> str:
        """Name of the value that `use` reads; empty where the slot is absent."""
        inputs = self.nodes[use.node].input
        return inputs[use.slot] if use.slot < len(inputs) else ""

    def tensor(self, name: str) -> TensorProto | None:
        """The tensor behind a constant value: an initializer or a Constant node's; None for anything else."""
        if name in self._initializers:
            return self._initializers[name]
        node = self.constant_node(name)
        if node is None:
            return None
        return next((entry.t for entry in node.attribute if entry.name == "value"), None)

    def constant_node(self, name: str) -> NodeProto | None:
        """The Constant node that makes the value `name`, if one does."""
        index = self.producer.get(name)
        if index is None:
            return None
        node = self.nodes[index]
        return node if node.op_type == "Constant" and node.domain in ONNX_DOMAINS else None

    def array(self, name: str) -> Array | None:
        """Value of the constant `name`; None where it is no constant that can be read here.

        A constant is an initializer, the output of a Constant node, or what a few operators make of one (`folding`).
        External data are mapped, not read.
        """
        tensor = self.tensor(name)
        if tensor is not None:
            return tensor_array(tensor, self.folder)
        inner = self.folding_node(name)
        if inner is not None:
            inputs = [self.array(part) if part else None for part in inner.input]
            return (
                None
                if any(a is None and part for a, part in zip(inputs, inner.input, strict=True))
                else folded(inner, inputs)
            )
        node = self.constant_node(name)
        if node is None:
            return None
        entry = node.attribute[0]
        match entry.name:
            case "value_float" | "value_floats":
                return np.asarray(onnx.helper.get_attribute_value(entry), np.float32)
            case "value_int" | "value_ints":
                return np.asarray(onnx.helper.get_attribute_value(entry), np.int64)
            case _:
                return None

    def folding_node(self, name: str) -> NodeProto | None:
        """The node that makes `name` of other values by moving or casting entries, if one does."""
        index = self.producer.get(name)
        if index is None:
            return None
        node = self.nodes[index]
        return node if node.op_type in FOLDING and node.domain in ONNX_DOMAINS else None

    def source(self, use: Use) -> Use:
        """Where the constant at `use` is best rewritten: before Casts from another float type, which then stays."""
        while (node := self.folding_node(self.name_at(use))) is not None:
            before = self.array(node.input[0])
            floats = before is not None and before.dtype.kind == "f"
            if node.op_type not in ("Cast", "Identity") or not floats or self._read_otherwise(use) is not None:
                break
            use = Use(self.producer[node.output[0]], 0)
        return use

    def made_of(self, name: str) -> set[str]:
        """Values that folding operators make of the constant `name`, at any remove."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for use in self.uses.get(waiting.pop(), []):
                for output in self.nodes[use.node].output:
                    if output not in found and self.folding_node(output) is not None and use.slot == 0:
                        found.add(output)
                        waiting.append(output)
        return found

    def rewritable(self, name: str) -> Array | None:
        """Value of the constant `name` where it may be rewritten; None for anything else."""
        return self.array(name) if self.why_not_constant(name) is None else None

    def why_not_constant(self, name: str) -> str | None:
        """The reason why the value `name` is not a constant that may be rewritten; None if it is one."""
        if name in self._sparse:
            return f"{quoted(name)} is a sparse initializer"
        if name in self.overridable:
            return f"{quoted(name)} is also a graph input, so that callers may override it"
        tensor = self.tensor(name)
        if tensor is not None and is_external(tensor) and self.folder is None:
            return f"{quoted(name)} lies in external data; load the model by its path"
        if tensor is not None or self.constant_node(name) is not None:
            return None
        inner = self.folding_node(name)
        if inner is not None:
            reasons = (self.why_not_constant(part) for part in inner.input if part)
            return next((reason for reason in reasons if reason is not None), None)
        index = self.producer.get(name)
        if index is None:
            return f"{quoted(name)} is a graph input"
        node = self.nodes[index]
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            return f"{quoted(name)} comes out of {node.op_type}: prune before you quantize"
        return f"{quoted(name)} is computed by {self.title(index)}"

    def shared_with(self, use: Use) -> str | None:
        """Who else reads (or gives out) the constant at `use`, or what it is made of, in words; None if nobody does."""
        other = self._read_otherwise(use)
        inner = self.folding_node(self.name_at(use))
        if other is None and inner is not None:
            return self.shared_with(Use(self.producer[inner.output[0]], 0))
        return other

    def _read_otherwise(self, use: Use) -> str | None:
        name = self.name_at(use)
        if name in self.outputs:
            return "the graph's outputs"
        if name in self.captured:
            return f"the body of {self.title(self.captured[name])}"
        others = [other for other in self.uses[name] if other != use]
        return self.title(others[0].node) if others else None

    def upstream(self, name: str) -> set[int]:
        """Numbers of all nodes that have a say in the value `name`."""
        wanted, needed = [name], set[int]()
        while wanted:
            index = self.producer.get(wanted.pop())
            if index is not None and index not in needed:
                needed.add(index)
                wanted.extend(read_names(self.nodes[index]))
        return needed

    def title(self, index: int) -> str:
        """Operator and name of node number `index`, for people: ``Gemm 'fc1'``."""
        node = self.nodes[index]
        operator = node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}::{node.op_type}"
        return f"{operator} {quoted(node.name or (node.output[0] if node.output else f'#{index}'))}"

    @cached_property
    def random_values(self) -> frozenset[str]:
        """Values that differ from run to run: everything downstream of a random operator."""
        found: set[str] = set()
        for node in self.nodes:
            if any(map(self._draws, nodes_below([node]))) or not found.isdisjoint(read_names(node)):
                found.update(name for name in node.output if name)
        return frozenset(found)

    @cached_property
    def counting_values(self) -> frozenset[str]:
        """Values whose number of entries may depend on the data: everything downstream of what counts or filters."""
        found: set[str] = set()
        for node in self.nodes:
            counts = any(below.domain in ONNX_DOMAINS and below.op_type in COUNTING for below in nodes_below([node]))
            if counts or not found.isdisjoint(read_names(node)):
                found.update(name for name in node.output if name)
        return frozenset(found)

    @cached_property
    def fickle_values(self) -> frozenset[str]:
        """Values that two models cannot be told apart by: those of the two kinds above."""
        return self.random_values | self.counting_values

    def _draws(self, node: NodeProto) -> bool:
        if node.domain in ONNX_DOMAINS:
            return node.op_type in RANDOM or self.trains(node)
        return (node.domain, node.op_type) in self._random_functions

    @cached_property
    def _random_functions(self) -> frozenset[tuple[str, str]]:
        """Functions with a random operator in them, or in a function that they call."""
        calls: dict[tuple[str, str], set[tuple[str, str]]] = {}
        found: set[tuple[str, str]] = set()
        for function in self.model.functions:
            key = (function.domain, function.name)
            inside = list(nodes_below(function.node))
            calls.setdefault(key, set()).update((node.domain, node.op_type) for node in inside)
            # The mode of a Dropout in here may come from the caller: counted as random.
            if any(
                node.domain in ONNX_DOMAINS
                and (node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2))
                for node in inside
            ):
                found.add(key)
        while more := {key for key, callees in calls.items() if key not in found and callees & found}:
            found |= more
        return frozenset(found)

    def trains(self, node: NodeProto) -> bool:
        """Whether `node` is a Dropout that its third input does not certainly keep in inference mode."""
        if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
            return False
        mode = None if node.input[2] in self.overridable else self.array(node.input[2])
        return mode is None or bool(mode)


COUNTING = frozenset(["Compress", "NonMaxSuppression", "NonZero", "Unique"])
RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)

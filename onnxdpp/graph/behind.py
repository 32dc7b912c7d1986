"""The part of a model behind a value: cut out, so that the value can be changed and the outputs seen to change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.batches import Batch
from onnxdpp.graph.calibration import Session, part_before
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.names import Names
from onnxdpp.graph.walking import quoted, read_names


@dataclass(frozen=True)
class Behind:
    """What lies behind the output of a node.

    Attributes
    ----------
    value : str
    nodes : tuple of int
        Numbers of all nodes that the value has a say in, and of the constants among what they read.
    reads : tuple of str
        What else they read and is computed, or fed.
    outputs : tuple of str
        Those of the model's outputs that follow, the value itself among them where it is one.
    """

    value: str
    nodes: tuple[int, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, graph: Graph, value: str) -> "Behind":
        """Follow a value to the outputs."""
        made = {value}
        nodes = []
        for index, node in enumerate(graph.nodes):
            if not made.isdisjoint(read_names(node)):
                nodes.append(index)
                made.update(name for name in node.output if name)
        read = set().union(*(read_names(graph.nodes[index]) for index in nodes)) - made
        constants = {name for name in read if graph.constant_node(name) is not None}
        fed = {entry.name for entry in graph.inputs}
        reads = sorted(name for name in read - constants if name in fed or name in graph.producer)
        outputs = [entry.name for entry in graph.model.graph.output if entry.name in made]
        nodes = sorted({*nodes, *(graph.producer[name] for name in constants)})
        return cls(value, tuple(nodes), tuple(reads), tuple(dict.fromkeys(outputs)))

    def front(self, graph: Graph, provider: str, *also: str) -> Session:
        """What computes the value and what else is read, and what is named besides."""
        computed = dict.fromkeys(name for name in (*also, self.value, *self.reads) if name in graph.producer)
        return Session(part_before(graph, [(name, None) for name in computed]), provider, graph.folder)

    def values(self, front: Session, batch: Batch, *also: str) -> dict[str, Array]:
        """The value and what else is read, for one batch, and what is named besides."""
        found = dict(zip((name for name, *_ in front.outputs), front.run(batch), strict=True))
        return {name: found[name] if name in found else batch.feeds[name] for name in (*also, self.value, *self.reads)}

    def back(self, graph: Graph, values: Mapping[str, Array], outputs: Sequence[str], provider: str) -> Session:
        """What computes `outputs` from such values; the names of its inputs are those of the values."""
        old, fed = graph.model, Names(graph).fresh(f"{self.value}_fed")
        nodes = [helper.make_node("Identity", [fed], [self.value]), *(graph.nodes[index] for index in self.nodes)]
        read = set().union(*map(read_names, nodes))
        part = ModelProto(ir_version=old.ir_version)
        part.opset_import.extend(old.opset_import)
        part.functions.extend(old.functions)
        part.graph.name = old.graph.name
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(tensor for tensor in old.graph.initializer if tensor.name in read)
        part.graph.sparse_initializer.extend(
            tensor for tensor in old.graph.sparse_initializer if tensor.values.name in read
        )
        for name, array in values.items():
            if not isinstance(array, np.ndarray):
                raise ModelError(f"{quoted(name)} is no tensor, so that it cannot be fed.")
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            shape = [None] * np.ndim(array)
            part.graph.input.append(helper.make_tensor_value_info(fed if name == self.value else name, kind, shape))
        part.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        return Session(part, provider, graph.folder)

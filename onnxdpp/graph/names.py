"""Names that nothing in a model uses yet."""

from onnxdpp.graph.index import Graph
from onnxdpp.graph.walking import all_graphs, all_nodes


class Names:
    """Hands out names that nothing in the model uses yet."""

    def __init__(self, graph: Graph) -> None:
        self.taken: set[str] = set()
        for part in all_graphs(graph.model):
            self.taken.update(value.name for value in (*part.input, *part.output, *part.value_info))
            self.taken.update(tensor.name for tensor in part.initializer)
            self.taken.update(tensor.values.name for tensor in part.sparse_initializer)
        for node in all_nodes(graph.model):
            self.taken.update((node.name, *node.input, *node.output))

    def fresh(self, wish: str) -> str:
        """`wish`, or `wish` with a number."""
        name, number = wish, 1
        while name in self.taken:
            number += 1
            name = f"{wish}_{number}"
        self.taken.add(name)
        return name

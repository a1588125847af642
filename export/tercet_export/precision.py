"""Turns an exported fp32 graph into fp16: weights, and the activations wherever fp16 is accurate enough.

Inputs and outputs keep their types. Every float value becomes one of three kinds:

- HALF: fp16. Weights, what matrix products and convolutions give, what is made of that value by value.
- FULL: fp32. What comes of sums, norms, softmax, exponentials and divisions, whose small terms or large
  totals fp16 would lose; and what comes of those, until the next product.
- ANY: constants that are no weights, what comes of them and of integers alone, pixels before the first
  convolution: computed in fp32, and used as whatever they meet.

A value's kind is the largest of what it is made of (ANY < HALF < FULL), unless its operation decides. Each
conversion is one Cast, right behind the value, however many read it: so nothing is converted once a token
inside a captioner's `Loop`.
"""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import onnx_ir
import torch
from onnx_ir import DataType, Node, Value
from onnx_ir.passes import common as passes

from tercet.errors import ExportError

LARGEST = float(np.finfo(np.float16).max)

# Almost all of the work, and accumulated in fp32 by every runtime. (Attention's softmax is fp32 inside.)
PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})

# Computed in fp32. LayerNormalization is not here: the operator itself does so (its `stash_type`), and gives
# mean and deviation in fp32, which some of PyTorch's versions ask for.
DELICATE = frozenset(
    {
        "BatchNormalization",
        "Cos",
        "CumSum",
        "Exp",
        "GlobalAveragePool",
        "GridSample",
        "GroupNormalization",
        "InstanceNormalization",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Sin",
        "Softmax",
        "Softplus",
        "Sqrt",
    }
)

# Give their input's numbers unchanged: nothing to round.
MOVES = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)

# A constant of more numbers than this is taken for weights: embeddings, tables of positions.
SMALL = 1024

# Inputs that an operator takes in fp32 whatever the others are.
ALWAYS_FULL = {"Resize": (1, 2)}

SUBGRAPHS = ("If", "Loop")


class Kind(IntEnum):
    """How a float value is kept; see the module."""

    ANY = 0
    HALF = 1
    FULL = 2


def to_half(model: onnx_ir.Model) -> None:
    """Convert a graph whose floats are fp32. ExportError names an operation that there is no rule for."""
    planned = Plan()
    planned.graph(model.graph)
    casts = Casts()
    for node in list(model.graph.all_nodes()):
        for index, kind in planned.inputs(node):
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, casts.get(value, planned.dtype(value), as_dtype(kind)))
        for graph, kinds in planned.outputs(node):
            casts.outputs(graph, planned, kinds)
    casts.outputs(model.graph, planned, [Kind.FULL if is_float(v) else None for v in model.graph.outputs])
    for value, kind in planned.kinds.items():
        if kind is Kind.HALF and not value.is_initializer():
            value.dtype = DataType.FLOAT16
    casts.drop_unused(model.graph)
    passes.RemoveUnusedNodesPass()(model)


def is_float(value: Value | None) -> bool:
    """Whether a value is fp32."""
    return value is not None and value.dtype == DataType.FLOAT


def as_dtype(kind: Kind) -> DataType:
    """How a kind is stored."""
    return DataType.FLOAT16 if kind is Kind.HALF else DataType.FLOAT


class Plan:
    """The kind of every float value of a graph that is still fp32."""

    def __init__(self) -> None:
        self.kinds: dict[Value, Kind] = {}
        self.of_node: dict[Node, Kind] = {}
        self.carried: dict[Node, list[Kind | None]] = {}

    def kind(self, value: Value) -> Kind:
        """The kind decided on; of public inputs and constants ANY, but for weights."""
        if value not in self.kinds:
            self.kinds[value] = Kind.HALF if is_float(value) and is_weight(value) else Kind.ANY
        return self.kinds[value]

    def dtype(self, value: Value) -> DataType:
        """What a float value will be stored as before any cast."""
        return DataType.FLOAT if value.is_initializer() else as_dtype(self.kind(value))

    def graph(self, graph: onnx_ir.Graph) -> None:
        """Decide on every value of a graph, front to back."""
        for node in graph:
            if node.op_type in SUBGRAPHS:
                self._with_subgraphs(node)
                continue
            if any(attribute.type == onnx_ir.AttributeType.GRAPH for attribute in node.attributes.values()):
                raise ExportError(
                    f"there is no rule for the operation {node.op_type} in fp16: export in fp32"
                )
            self.of_node[node] = kind = self._computed(node)
            for place, output in enumerate(node.outputs):
                if is_float(output):
                    statistics = node.op_type == "LayerNormalization" and place > 0
                    self.kinds[output] = Kind.FULL if statistics else kind

    def _computed(self, node: Node) -> Kind:
        """What a node without subgraphs computes in."""
        kinds = [self.kind(value) for value in node.inputs if value is not None and is_float(value)]
        largest = max(kinds, default=Kind.ANY)
        if node.op_type in PRODUCTS:
            return Kind.HALF if all(fits(value) for value in node.inputs[:2]) else Kind.FULL
        if node.op_type == "Cast":
            return Kind.FULL if largest else Kind.ANY
        coarse = any(is_scalar(value) and not fits(value) for value in node.inputs)
        quotient = node.op_type == "Div" and is_float(node.inputs[1]) and not is_constant(node.inputs[1])
        if node.op_type in DELICATE or coarse or quotient:
            return Kind.FULL if largest else Kind.ANY
        return largest

    def _with_subgraphs(self, node: Node) -> None:
        """A loop's values keep one kind from turn to turn: the largest that any turn makes of them."""
        if node.op_type == "If":
            branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
            for branch in branches:
                self.graph(branch)
            results = [self._of_all(values) for values in zip(*(b.outputs for b in branches), strict=True)]
        else:
            body = node.attributes["body"].as_graph()
            state = [self._of_all((value,)) for value in node.inputs[2:]]
            while True:
                for value, kind in zip(body.inputs[2:], state, strict=True):
                    if kind is not None:
                        self.kinds[value] = kind
                self.graph(body)
                made = [self._of_all((value,)) for value in body.outputs[1:]]
                scans = made[len(state) :]
                after = [
                    None if kind is None else max(kind, new or Kind.ANY)
                    for kind, new in zip(state, made, strict=False)
                ]
                if after == state:
                    break
                state = after
            results = state + scans
        self.carried[node] = results
        for value, kind in zip(node.outputs, results, strict=True):
            if kind is not None:
                self.kinds[value] = kind

    def _of_all(self, values: tuple[Value | None, ...]) -> Kind | None:
        """The largest kind among float values, None for values of another type."""
        return max(
            (self.kind(value) for value in values if value is not None and is_float(value)), default=None
        )

    def inputs(self, node: Node) -> Iterator[tuple[int, Kind]]:
        """Which float inputs of a node are needed as what."""
        if node.op_type in ("If", "Cast"):
            return
        for index, value in enumerate(node.inputs):
            if not is_float(value):
                continue
            if node.op_type == "Loop":
                kind = self.carried[node][index - 2]
                assert kind is not None
                yield index, kind
            elif index in ALWAYS_FULL.get(node.op_type, ()):
                yield index, Kind.FULL
            else:
                yield index, self.of_node[node]

    def outputs(self, node: Node) -> Iterator[tuple[onnx_ir.Graph, list[Kind | None]]]:
        """The subgraphs of a node, and what their outputs are needed as."""
        if node.op_type == "Loop":
            yield node.attributes["body"].as_graph(), [None, *self.carried[node]]
        elif node.op_type == "If":
            for name in ("then_branch", "else_branch"):
                yield node.attributes[name].as_graph(), self.carried[node]


class Casts:
    """Values in another type: one Cast behind each, or another copy of a constant."""

    def __init__(self, label: str = "") -> None:
        self.label = label  # in the names of what is made: a value may have a cast from an earlier pass
        self.made: dict[tuple[Value, DataType], Value] = {}

    def get(self, value: Value, have: DataType, want: DataType) -> Value:
        """`value`, which is stored as `have`, as `want`."""
        if have == want:
            return value
        if (value, want) not in self.made:
            make = converted if value.is_initializer() else cast_behind
            self.made[value, want] = make(value, want, f"{value.name}{self.label}_{want.name.lower()}")
        return self.made[value, want]

    def outputs(self, graph: onnx_ir.Graph, planned: Plan, kinds: list[Kind | None]) -> None:
        """Make a graph's outputs of the kinds given; None for those that are no floats."""
        for index, (value, kind) in enumerate(zip(graph.outputs, kinds, strict=True)):
            if kind is not None:
                graph.outputs[index] = self.get(value, planned.dtype(value), as_dtype(kind))

    def drop_unused(self, graph: onnx_ir.Graph) -> None:
        """Forget the constants of which only a copy is used."""
        for value, _ in self.made:
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                del graph.initializers[str(value.name)]


def cast_behind(value: Value, dtype: DataType, name: str) -> Value:
    """A Cast of a value, where the value is made: in a loop's body only if it is made there."""
    producer = value.producer()
    source: Value | None = value
    if dtype == DataType.FLOAT16 and producer is not None and producer.op_type == "Cast":
        source = producer.inputs[0]  # integers: no need to go through fp32
    node = onnx_ir.node("Cast", [source], {"to": dtype})
    node.outputs[0].name = name
    node.outputs[0].dtype = dtype
    node.outputs[0].shape = value.shape
    if producer is not None:
        assert producer.graph is not None
        producer.graph.insert_after(producer, node)
    else:
        assert value.graph is not None
        value.graph.insert_before(value.graph[0], node)
    return node.outputs[0]


def converted(value: Value, dtype: DataType, name: str) -> Value:
    """A copy of a constant in another type, made when it is written: it takes no memory until then.

    Numbers beyond fp16 become its largest, since those of attention masks would else be infinite and make
    NaN of a row that is all masked. Infinities stay.
    """
    tensor = value.const_value
    assert tensor is not None
    assert value.graph is not None

    def convert() -> onnx_ir.Tensor:
        if dtype == DataType.FLOAT:
            return onnx_ir.Tensor(tensor.numpy().astype(np.float32))
        whole = torch.from_numpy(np.array(tensor.numpy()))
        finite = whole.clamp(-LARGEST, LARGEST).where(whole.isfinite(), whole)
        return onnx_ir.Tensor(finite.to(torch.float16).numpy())

    lazy = onnx_ir.LazyTensor(convert, dtype, onnx_ir.Shape(tensor.shape.numpy()), name=name)
    copy = onnx_ir.Value(name=name, shape=lazy.shape, type=onnx_ir.TensorType(dtype), const_value=lazy)
    value.graph.register_initializer(copy)
    return copy


def is_scalar(value: Value | None) -> bool:
    """Whether a value is one stored number."""
    return (
        value is not None and is_constant(value) and bool(value.const_value and value.const_value.size == 1)
    )


def is_constant(value: Value | None) -> bool:
    """Whether a value is stored in the file."""
    return value is not None and value.is_initializer()


def is_weight(value: Value) -> bool:
    """Whether a value is a large stored matrix of floats that fp16 holds: none of it needs to be in fp32."""
    if not is_constant(value) or value.const_value is None:
        return False
    return len(value.const_value.shape) >= 2 and value.const_value.size > SMALL and fits(value)


def fits(value: Value | None) -> bool:
    """Whether fp16 holds a value as well as any: also true of what is no constant.

    Not so for numbers beyond its range, as in masks, and for those below 6e-5, which it rounds to steps of
    6e-8 or to zero: the epsilon of a division, the weights of some sums over pixels.
    """
    if value is None or not is_constant(value) or not is_float(value) or value.const_value is None:
        return True
    whole = torch.from_numpy(np.array(value.const_value.numpy())).flatten()
    lost = (whole - whole.to(torch.float16)).norm()
    return bool(lost <= 2**-10 * whole.norm())


def rounded_everywhere(model: onnx_ir.Model) -> None:
    """Make an fp16 graph compute on a CPU what fp16 hardware does: every result rounded, or infinite.

    ONNX Runtime has few fp16 kernels for a CPU. It computes such nodes in fp32 and joins them, so that
    between two of them nothing is rounded and nothing overflows (measured with 1.32: 1000 * 300 / 300 is
    1000). Here each node computes in fp32 explicitly, and its result goes through fp16 and an Identity, which
    keeps the two casts apart: without optimisations (`ORT_DISABLE_ALL`) they are then not removed.
    """
    casts = Casts(label="_rounded")
    for node in list(model.graph.all_nodes()):
        halves = [value for value in (*node.inputs, *node.outputs) if is_half(value)]
        if not halves or node.op_type in MOVES or node.op_type in SUBGRAPHS:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and is_half(value):
                full = casts.get(value, DataType.FLOAT16, DataType.FLOAT)
                node.replace_input_with(index, full)
        for value in node.outputs:
            if not is_half(value):
                continue
            value.dtype = DataType.FLOAT
            half = cast_behind(value, DataType.FLOAT16, f"{value.name}_rounding")
            barrier = onnx_ir.node("Identity", [half])
            barrier.outputs[0].name = f"{value.name}_rounded"
            barrier.outputs[0].dtype, barrier.outputs[0].shape = DataType.FLOAT16, value.shape
            producer = half.producer()
            assert producer is not None
            assert producer.graph is not None
            producer.graph.insert_after(producer, barrier)
            onnx_ir.convenience.replace_all_uses_with(value, barrier.outputs[0], replace_graph_outputs=True)
            producer.replace_input_with(0, value)
    casts.drop_unused(model.graph)


def is_half(value: Value | None) -> bool:
    """Whether a value is fp16."""
    return value is not None and value.dtype == DataType.FLOAT16

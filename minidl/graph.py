"""The walk back through the graph: reverse-mode differentiation.

Both `Tensor.backward` and `grad` order the nodes below the outputs topologically (with an explicit
stack, so that only memory bounds the graph's depth), then visit them from the outputs to the
leaves, each once, after all gradients of its outputs have been summed.
"""

import sys
from contextlib import nullcontext
from functools import partial

import numpy as np

from kernels.memory import fills_a_buffer, is_pooled_here
from minidl.array_module import get_array_module
from minidl.ops.elementwise import Add
from minidl.tensor import Tensor, _mode, as_tensor, enable_grad, no_grad


def backward(output: Tensor, grad=None, retain_graph=False, create_graph=False) -> None:
    """Accumulate gradients of `output` into the leaves; see `Tensor.backward`."""
    seed = _seed(output, grad, "grad")
    _walk([output], [seed], retain_graph or create_graph, create_graph, _LeafGrads(seed), {})


def grad(
    outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, allow_unused=False,
    rules=None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return d(outputs)/d(inputs) without touching any `.grad`.

    `outputs`, `inputs`: a Tensor or a sequence of them; `grad_outputs`: matching weights of the
    outputs, which may be left out for one-element outputs. `retain_graph` defaults to
    `create_graph`. An input that the outputs do not depend on gives None if `allow_unused`,
    else RuntimeError. `rules`: {Function class: rule}, where ``rule(node, *grads)`` stands in for
    the ``backward`` of every node of exactly that class during this walk.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None or isinstance(grad_outputs, Tensor) or hasattr(grad_outputs, "dtype"):
        grad_outputs = [grad_outputs]
        grad_outputs *= len(outputs) if grad_outputs[0] is None else 1
    if len(grad_outputs) != len(outputs):
        raise ValueError(
            f"grad_outputs must have one entry an output ({len(outputs)}), got {len(grad_outputs)}"
        )
    for i, t in enumerate(inputs):
        if not t.requires_grad:
            raise ValueError(f"inputs[{i}] must require grad")
    pairs = zip(outputs, grad_outputs, strict=True)
    seeds = [_seed(o, g, f"grad_outputs[{i}]") for i, (o, g) in enumerate(pairs)]
    sink = _Capture(inputs)
    retain = create_graph if retain_graph is None else retain_graph or create_graph
    _walk(outputs, seeds, retain, create_graph, sink, rules or {})
    results = tuple(sink.grads.get(_key(t)) for t in inputs)
    for i, result in enumerate(results):
        if result is None and not allow_unused:
            raise RuntimeError(
                f"inputs[{i}] of shape {inputs[i].shape} was not used to compute the outputs; "
                "pass allow_unused=True to get None for it"
            )
    return results


def _seed(output: Tensor, grad, name: str) -> Tensor:
    if not output.requires_grad:
        raise RuntimeError("backward needs a tensor that requires grad: no graph leads to this one")
    if grad is None:
        if output.size != 1:
            raise RuntimeError(f"{name} must be given for an output of shape {output.shape}")
        return Tensor._wrap(get_array_module(output._array).ones_like(output._array))
    grad = as_tensor(grad, like=output)
    if grad.shape != output.shape:
        raise ValueError(f"{name} must have the output's shape {output.shape}, got {grad.shape}")
    if grad.device != output.device:
        raise ValueError(f"{name} must be on the output's device, {output.device}: it is on "
                         f"{grad.device}")
    return grad if grad.dtype == output.dtype else grad.astype(output.dtype)


def _key(tensor: Tensor):
    """What gradients of `tensor` are collected under: the leaf, or (node, output index)."""
    return tensor if tensor._node is None else (tensor._node, tensor._index)


class _LeafGrads:
    """Where `backward` puts gradients: the leaves' `.grad`."""

    def __init__(self, seed):
        self._taken = {id(owner): owner for owner in (_owner(seed._array),)}
        self.open = {}  # leaf with hooks -> how many uses of it have not been visited yet
        self._reached = set()

    def useful(self, order) -> set:
        """The nodes worth visiting: all, for what is recorded leads to a leaf."""
        for node in order:
            self.expect(_targets(node))
        return set(order)

    def expect(self, targets):
        for target in targets:
            if getattr(target, "_gradient_hooks", None):
                self.open[target] = self.open.get(target, 0) + 1

    def passed(self, targets):
        for target in targets:
            if target in self.open:
                self.open[target] -= 1
                if not self.open[target] and target in self._reached:
                    for hook in tuple(target._gradient_hooks.values()):
                        hook(target)

    def leaf(self, leaf: Tensor, grad: Tensor):
        if self.open:
            self._reached.add(leaf)
        if leaf.grad is not None:
            inplace = isinstance(leaf.grad, Tensor) and _is_free([leaf.grad], 0, others=1)
            leaf.grad = Add(inplace)(leaf.grad, grad)
            return
        leaf.grad = self._unshared(grad)

    def node(self, node, grads):
        for tensor in node.retained():
            grad = grads[tensor._index]
            if grad is not None:
                tensor.grad = self._unshared(grad) if tensor.grad is None else tensor.grad + grad

    def _unshared(self, grad):
        # Two tensors, or a tensor and the caller, must not share one gradient array: optimisers and
        # clipping write to it. A graph-carrying gradient cannot be copied away from its graph.
        owner = _owner(grad._array)
        if (owner is None or id(owner) in self._taken) and grad._node is None:
            grad = Tensor._wrap(grad._array.copy())
            owner = grad._array
        # The walk still reads a retained gradient: it belongs to that tensor all the same.
        self._taken[id(owner)] = owner
        return grad


def _owner(array):
    """The object that holds the memory of an array alone: itself, or the buffer it fills; or None.

    Any other view may show only a part of its memory, or one element many times.
    """
    base = array.base
    if base is None:
        return array
    return base if fills_a_buffer(array) else None


class _Capture:
    """Where `grad` puts gradients: a table for the asked inputs alone."""

    open = ()  # hooks belong to `.grad`, which stays as it is here

    def __init__(self, inputs):
        self.grads = {}
        self._leaves = {t for t in inputs if t._node is None}
        self._outputs = {}
        for t in inputs:
            if t._node is not None:
                self._outputs.setdefault(t._node, set()).add(t._index)

    def useful(self, order) -> set:
        """The nodes worth visiting: those that lead to an asked input."""
        wanted = self._leaves | self._outputs.keys()
        useful = set()
        for node in order:
            if node in wanted or any(t in wanted or t in useful for t in _targets(node)):
                useful.add(node)
        return useful

    def expect(self, targets):
        """Nothing waits for them."""

    passed = expect

    def leaf(self, leaf, grad):
        if leaf in self._leaves:
            self.grads[leaf] = self.grads[leaf] + grad if leaf in self.grads else grad

    def node(self, node, grads):
        for index in self._outputs.get(node, ()):
            if grads[index] is not None:
                self.grads[node, index] = grads[index]


def _walk(outputs, seeds, retain_graph, create_graph, sink, rules):
    order = _topological_order([o._node for o in outputs if o._node is not None])
    useful = sink.useful(order)
    pending = {}
    with enable_grad() if create_graph else no_grad(), _profiled():
        for output, seed in zip(outputs, seeds, strict=True):
            if output._node is None:
                sink.expect([output])
                sink.leaf(output, seed)
                sink.passed([output])
            else:
                _add(pending, output._node, output._index, seed)
        while order:
            node = order.pop()
            grads = pending.pop(node, None)
            if grads is not None and node in useful:
                sink.node(node, grads)
                _visit(node, grads, pending, useful, sink, rules)
            if sink.open:
                sink.passed(_targets(node))
            if not retain_graph:
                node.release()


def _targets(node) -> list:
    """Where the node's edges lead: other nodes, and leaves."""
    return [edge[0] for edge in node.edges if edge is not None]


def _profiled():
    return nullcontext() if _mode.profiler is None else _mode.profiler.walk()


def _topological_order(roots) -> list:
    """Nodes below `roots`, inputs before their consumers (iterative post-order)."""
    order, done = [], set()
    stack = [(root, False) for root in roots]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
            continue
        if node in done:
            continue
        done.add(node)
        node.check_alive()
        stack.append((node, True))
        for edge in node.edges:
            if edge is not None and not isinstance(edge[0], Tensor) and edge[0] not in done:
                stack.append((edge[0], False))
    return order


def _visit(node, grads, pending, useful, sink, rules):
    rule = rules.get(type(node))
    # What a rule or a class derived from that one gives to backward may be another gradient.
    takes = rule is None and vars(type(node)).get("takes_grad", False)
    node.grad_is_free = takes and grads[0] is not None and _is_free(grads, 0)
    filled = [
        _zeros(meta, grads) if g is None and meta[1].kind == "f" else g
        for g, meta in zip(grads, node.output_meta, strict=True)
    ]
    run = node.backward if rule is None else partial(rule, node)
    profiler = _mode.profiler
    try:
        results = run(*filled) if profiler is None else profiler.backward(node, run, filled)
    finally:
        node.grad_is_free = False  # nor may whoever calls backward later
    if not isinstance(results, tuple):
        results = (results,)
    if len(results) != len(node.edges):
        raise RuntimeError(
            f"{type(node).__name__}.backward must return {len(node.edges)} gradients, "
            f"got {len(results)}"
        )
    for i, (edge, grad) in enumerate(zip(node.edges, results, strict=True)):
        if edge is None or grad is None:
            continue
        grad = _checked(node, i, grad)
        target, index = edge
        if isinstance(target, Tensor):
            sink.leaf(target, grad)
        elif target in useful:
            _add(pending, target, index, grad)


def _checked(node, i, grad) -> Tensor:
    if not isinstance(grad, Tensor):
        raise TypeError(
            f"{type(node).__name__}.backward must return Tensors, got {type(grad).__name__}"
        )
    array, (shape, dtype) = grad._array, node.input_meta[i]
    if array.shape != shape:
        raise RuntimeError(
            f"{type(node).__name__}.backward: the gradient of input {i} must have shape {shape}, "
            f"got {array.shape}"
        )
    if array.dtype != dtype:
        grad = grad.astype(dtype)
    # Outside create_graph a backward may hand back a kept leaf itself; its graph is not wanted.
    return grad.detach() if grad._requires_grad and not _mode.enabled else grad


def _zeros(meta, grads) -> Tensor:
    shape, dtype = meta
    known = next(g for g in grads if g is not None)
    return Tensor._wrap(get_array_module(known._array).zeros(shape, dtype))


def _add(pending, node, index, grad):
    slots = pending.get(node)
    if slots is None:
        slots = pending[node] = [None] * len(node.output_meta)
    if slots[index] is not None:
        inplace = _is_free(slots, index)
        grad = Add(inplace)(slots[index], grad)
    slots[index] = grad


def _is_free(slots, index, others=0) -> bool:
    """Whether a result may take the memory of a tensor in a list: whether only the list and so many
    `others` refer to it.

    Of NumPy's arrays that is known: all that it derives from one refers to that or to its base.
    """
    if not _is_own(slots[index]._array):
        return False
    tensor, array, buffer = _references(slots, index)
    return (tensor - others, array, buffer) in _UNSHARED and slots[index]._take_memory()


def _is_own(array) -> bool:
    """Whether it is a NumPy array on memory of its own, or on a buffer of this thread's pool."""
    if type(array) is not np.ndarray or not array.flags.writeable:
        return False
    return _owner(array) is not None and (array.base is None or is_pooled_here(array))


def _references(slots, index):
    """How many refer to a tensor in a list, to its array, and to the buffer that it fills."""
    return (
        sys.getrefcount(slots[index]),
        sys.getrefcount(slots[index]._array),
        0 if slots[index]._array.base is None else sys.getrefcount(slots[index]._array.base),
    )


_pool = [np.empty(8, np.uint8)]
_UNSHARED = (
    _references([Tensor._wrap(np.empty(1))], 0),
    _references([Tensor._wrap(np.ndarray(1, np.float64, _pool[0]))], 0),
)

"""What operations made and what the graph keeps, counted in bytes while both come and go."""

import weakref
from collections import deque

from minidl.tensor import Tensor


class Memory:
    """A ledger of two sums and their peaks.

    ``live``: arrays that operations made and that still exist; ``saved``: what nodes keep for
    backward, leaves that require grad (parameters) left out. Memory shared by several tensors
    counts once. Scratch memory within a kernel does not count.
    """

    def __init__(self):
        self.made = self.held = 0  # bytes ever made, ever kept for backward: they never fall
        self.live = self.live_peak = 0
        self.saved = self.saved_peak = 0
        self._existing = {}  # id -> weak reference to a storage, or to the array of a buffer
        self._nodes = {}  # id -> (weak reference to a node, what it keeps)
        self._kept = {}  # id of a storage or array -> [nodes that keep it, its bytes]
        # Objects die in any thread, and in the middle of any statement: their deaths queue here.
        self._freed = deque()
        self._dead_nodes = deque()

    def forward(self, function, inputs, outputs) -> tuple[int, int]:
        """Enter an operation that ran; returns the bytes (newly made, newly kept)."""
        self._settle()
        known = {id(t._storage) for t in inputs if isinstance(t, Tensor)}
        before = self.made
        for t in outputs:
            if id(t._storage) not in known:
                self._add(t._storage, t._array.nbytes)
        if not (function.edges and (function._locked or function.buffers)):
            return self.made - before, 0
        for _, array in _buffers(function):
            self._add(array, array.nbytes)
        return self.made - before, self._keep(function)

    def backward(self, node, grads, results) -> None:
        """Enter the gradients that a node's backward returned."""
        self._settle()
        tensors = (*grads, *(node._inputs or ()))
        known = {id(t._storage) for t in tensors if t is not None}
        owners = {id(_owner(g._array)) for g in grads if g is not None}
        for t in results:
            if (
                isinstance(t, Tensor)
                and id(t._storage) not in known
                and id(_owner(t._array)) not in owners
            ):
                self._add(t._storage, t._array.nbytes)

    def released(self, node) -> None:
        """Enter that a node has freed what it kept."""
        self._settle()
        self._forget(id(node))

    def _add(self, thing, count):
        key = id(thing)
        if key in self._existing:
            return
        existing, freed = self._existing, self._freed

        def gone(_):
            existing.pop(key, None)
            freed.append(count)

        existing[key] = weakref.ref(thing, gone)
        self.made += count
        self.live += count
        self.live_peak = max(self.live_peak, self.live)

    def _keep(self, function) -> int:
        before = self.held
        sizes = {key: array.nbytes for _, key, array in kept_arrays(function)}
        for key, count in sizes.items():
            entry = self._kept.setdefault(key, [0, count])
            if not entry[0]:
                self.saved += count
                self.held += count
            entry[0] += 1
        key, dead = id(function), self._dead_nodes
        reference = weakref.ref(function, lambda _: dead.append(key))
        self._nodes[key] = (reference, tuple(sizes))
        self.saved_peak = max(self.saved_peak, self.saved)
        return self.held - before

    def _settle(self):
        while self._dead_nodes:
            self._forget(self._dead_nodes.popleft())
        while self._freed:
            self.live -= self._freed.popleft()

    def _forget(self, key):
        _, kept = self._nodes.pop(key, (None, ()))
        for thing in kept:
            entry = self._kept[thing]
            entry[0] -= 1
            if not entry[0]:
                self.saved -= entry[1]
                del self._kept[thing]


def kept_arrays(function):
    """(what it is, id of its memory, array) of all that a recorded node keeps, but for leaves that
    require grad.
    """
    for i, t in enumerate(function._inputs or ()):
        if t is not None and not (t._node is None and t._requires_grad):
            yield f"input {i}", id(t._storage), t._array
    for i, kept in enumerate(function._outputs or ()):
        if kept is not None:
            array, storage = kept
            yield f"output {i}", id(storage), array
    for name, array in _buffers(function):
        yield f"buffer {name}", id(array), array


def _buffers(function):
    for name in function.buffers:
        array = function.__dict__.get(name)
        if hasattr(array, "nbytes"):
            yield name, array


def _owner(array):
    return array if array.base is None else array.base

"""What operations made and what the graph keeps, counted in bytes while both come and go."""

import weakref
from collections import deque
from typing import NamedTuple

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
        self._leaves = weakref.WeakValueDictionary()  # id -> storage of a leaf that requires grad
        # Objects die in any thread, and in the middle of any statement: their deaths queue here.
        self._freed = deque()
        self._dead_nodes = deque()

    def forward(self, function, inputs, outputs) -> tuple[int, int]:
        """Enter an operation that ran; returns the bytes (newly made, newly kept)."""
        self._settle()
        inputs = [t for t in inputs if isinstance(t, Tensor)]
        known = {id(t._storage) for t in inputs}
        self._leaves.update((id(t._storage), t._storage) for t in inputs if is_leaf(t))
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
        sizes = {kept.key: kept.bytes for kept in kept_arrays(function, self._leaves)}
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


class Kept(NamedTuple):
    """An array that a node keeps, the id of its memory and how many bytes that has."""

    what: str
    key: int
    array: object
    bytes: int


def is_leaf(tensor) -> bool:
    """Whether the tensor is one whose gradient backward computes, as a parameter is."""
    return tensor._node is None and tensor._requires_grad


def kept_arrays(function, leaves):
    """A Kept for all that a recorded node keeps, but for leaves that require grad and views of
    them: `leaves` holds the ids of their storages.

    A view keeps the whole array that it is a view of, unless that is the user's.
    """
    for i, t in enumerate(function._inputs or ()):
        if t is None or is_leaf(t) or id(t._storage) in leaves:
            continue
        whole = _owner(t._array).nbytes
        count = whole if t._node is not None else min(whole, t._array.nbytes)
        yield Kept(f"input {i}", id(t._storage), t._array, count)
    for i, kept in enumerate(function._outputs or ()):
        if kept is not None and id(kept[1]) not in leaves:
            array, storage = kept
            yield Kept(f"output {i}", id(storage), array, _owner(array).nbytes)
    for name, array in _buffers(function):
        yield Kept(f"buffer {name}", id(array), array, array.nbytes)


def _buffers(function):
    for name in function.buffers:
        array = function.__dict__.get(name)
        if hasattr(array, "nbytes"):
            yield name, array


def _owner(array):
    return array.base if isinstance(array.base, type(array)) else array

"""Storage: what keeps writes to memory that a graph needs from going unnoticed.

Backward needs the arrays that forward saw, so writing to them must not go unnoticed. Two guards:

* every tracked write (`mutate`, `copy_`) bumps a version counter, assigning `data` takes another
  storage: backward compares both with what forward saw;
* the array objects that the user can hold (`data`, `numpy()`, the array given to the constructor)
  are made read-only while a graph needs them, so that an untracked write raises where it is made.

Tensors made from one array object share the guards. What NumPy derives from such an array (a slice
taken before the graph was recorded) is beyond them, as it is in PyTorch.
"""

from weakref import WeakValueDictionary

import numpy as np


class Storage:
    """What tensors on the same memory share: a version, and the write locks of live graphs."""

    # Class-level: every result of an operation has a new one, which mostly stays as it is.
    version = 0
    locks = 0
    exposed = None  # id -> array object that the user may hold, for as long as one does
    frozen = None  # those of them that a lock made read-only

    @staticmethod
    def of(array) -> "Storage":
        """The storage that `array` was exposed by, or a new one that exposes it."""
        storage = _storages.get(id(array))
        if storage is None or storage.exposed.get(id(array)) is not array:
            storage = Storage()
            storage.expose(array)
        return storage

    def expose(self, array):
        if self.exposed is None:
            self.exposed = WeakValueDictionary()
        self.exposed[id(array)] = array
        _storages[id(array)] = self
        if self.locks:
            self._freeze()

    def view(self, array):
        """The engine's own view of an exposed array, writable even while a lock has frozen that."""
        frozen = any(a is array for a in self.frozen or ())
        if frozen:
            _thaw(array)
        view = array.view()
        if frozen:
            array.setflags(write=False)
        return view

    def lock(self):
        self.locks += 1
        if self.exposed is not None:
            self._freeze()

    def unlock(self):
        self.locks -= 1
        if not self.locks and self.frozen:
            for array in self.frozen:
                _thaw(array)
            self.frozen = None

    def _freeze(self):
        for reference in self.exposed.valuerefs():  # values() takes longer than all the rest
            array = reference()
            if isinstance(array, np.ndarray) and array.flags.writeable and _can_thaw(array):
                array.setflags(write=False)
                self.frozen = self.frozen or []
                self.frozen.append(array)


_storages = WeakValueDictionary()  # id of an exposed array -> its Storage


def _can_thaw(array) -> bool:
    """Whether NumPy would let a frozen `array` be written again: not on memory of a stranger's."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if array.base is None:
        return array.flags.owndata
    try:
        return not memoryview(array.base).readonly
    except TypeError:
        return False


def _thaw(array) -> None:
    """Make a frozen array writable again, though the lock of another graph may hold its owner."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    held = owner is not array and not owner.flags.writeable
    owner.setflags(write=True)  # of which NumPy asks leave for the array
    array.setflags(write=True)
    if held:
        owner.setflags(write=False)

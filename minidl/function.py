"""Function: a forward and a backward, the only way that an operation enters the graph."""

import weakref

import numpy as np

from minidl.array_module import device_of
from minidl.storage import Storage
from minidl.tensor import Tensor, _mode, as_tensor


class Function:
    """A differentiable operation; one instance is one node of the graph.

    A subclass takes settings (axis, stride, ...) in ``__init__`` and defines

    * ``forward(*arrays)``: arrays in, one array or a tuple of arrays out;
    * ``backward(*grads)``: one gradient Tensor an output in, one Tensor or None an input out.
      Written with operations on Tensors it can itself be differentiated.

    Calling the instance on tensors runs it: ``y = Scale(2.0)(x)``.

    Class attributes say what the graph must keep alive until backward:

    * ``keep_inputs``: True (all, read as ``self.inputs``), False (none) or the indices needed;
    * ``keep_outputs``: likewise, for ``self.outputs``;
    * ``buffers``: names of attributes set by forward (masks, switches) to drop after backward.

    A class that sets ``takes_grad`` is told by the walk, in ``self.grad_is_free``, whether backward
    may write a result over the first output's gradient, for which nobody else has use then. Classes
    derived from it are not, unless they set it, too.

    Source of the shape: the op-as-class design of Chainer and DeZero.
    """

    keep_inputs: bool | tuple[int, ...] = True
    keep_outputs: bool | tuple[int, ...] = False
    buffers: tuple[str, ...] = ()

    takes_grad: bool = False
    grad_is_free: bool = False

    # Graph state; class-level defaults keep a node's construction cheap.
    edges: tuple = ()
    needs_input_grad: tuple[bool, ...] = ()
    _inputs = _outputs = _input_versions = _output_versions = None
    _locked = ()
    _released = False
    _retained = None

    def forward(self, *arrays):
        raise NotImplementedError(f"{type(self).__name__}.forward is not defined")

    def backward(self, *grads):
        raise NotImplementedError(f"{type(self).__name__}.backward is not defined")

    def __call__(self, *inputs):
        if _mode.profiler is not None:
            return _mode.profiler.forward(self, inputs)
        inputs = _as_tensors(inputs)
        arrays = [t._array for t in inputs]
        if len(arrays) > 1:
            check_one_device(type(self).__name__, arrays)
        results = self.forward(*arrays)
        single = not isinstance(results, tuple)
        if single:
            outputs = [_wrap_output(results, inputs)]
        else:
            outputs = [_wrap_output(result, inputs) for result in results]
        if _mode.enabled and True in [t._requires_grad for t in inputs]:
            self._record(inputs, outputs)
        elif self.buffers:
            self._drop_buffers()
        if _mode.listener is not None:
            _mode.listener(self, inputs, outputs)
        return outputs[0] if single else tuple(outputs)

    def _record(self, inputs, outputs):
        # Loops and lists rather than generators: this runs once an operation.
        if self.edges:
            raise RuntimeError(f"{type(self).__name__}: an instance can be called once only")
        self.needs_input_grad = tuple([t._requires_grad for t in inputs])
        # An edge leads to the node that made the input, or to the leaf itself.
        self.edges = tuple(
            [
                ((t if t._node is None else t._node), t._index) if t._requires_grad else None
                for t in inputs
            ]
        )
        self.input_meta = tuple([(t._array.shape, t._array.dtype) for t in inputs])
        self.output_meta = tuple([(t._array.shape, t._array.dtype) for t in outputs])
        locked = []
        if keep := self.keep_inputs:
            kept = inputs
            if keep is not True:
                kept = tuple([t if i in keep else None for i, t in enumerate(inputs)])
            self._inputs = kept
            self._input_versions = tuple([(t._storage, t._storage.version) for t in inputs])
            locked = [t._storage for t in kept if t is not None]
        if keep := self.keep_outputs:
            keep = range(len(outputs)) if keep is True else keep
            # Array and storage, not the Tensor: it refers to this node, which would be a cycle.
            self._outputs = tuple(
                [(t._array, t._storage) if i in keep else None for i, t in enumerate(outputs)]
            )
            self._output_versions = tuple([t._storage.version for t in outputs])
            locked += [kept[1] for kept in self._outputs if kept is not None]
        self._locked = locked
        for storage in locked:
            storage.lock()
        for index, output in enumerate(outputs):
            if output._array.dtype.kind == "f":
                output._requires_grad = True
                output._node = self
                output._index = index

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """The kept input tensors (None where not kept), checked to be as forward saw them."""
        self.check_alive()
        for i, (t, version) in enumerate(zip(self._inputs, self._input_versions, strict=True)):
            if t is not None and (t._storage, t._storage.version) != version:
                self._modified("input", i, t.shape)
        return self._inputs

    @property
    def outputs(self) -> tuple[Tensor | None, ...]:
        """The kept outputs as tensors of this node (None where not kept), checked likewise."""
        self.check_alive()
        tensors = []
        for i, kept in enumerate(self._outputs):
            if kept is None:
                tensors.append(None)
                continue
            array, storage = kept
            if storage.version != self._output_versions[i]:
                self._modified("output", i, array.shape)
            t = Tensor._wrap(array, storage)
            if _mode.enabled and array.dtype.kind == "f":
                t._requires_grad, t._node, t._index = True, self, i
            tensors.append(t)
        return tuple(tensors)

    def _modified(self, kind, index, shape):
        raise RuntimeError(
            f"{type(self).__name__}: {kind} {index} of shape {shape} was modified in place after "
            "forward, but backward needs the original values"
        )

    def check_alive(self):
        """Raise RuntimeError if the buffers were already freed by an earlier backward."""
        if self._released:
            raise RuntimeError(
                f"{type(self).__name__}: the graph was already walked and its buffers freed; "
                "pass retain_graph=True to the first backward to walk it again"
            )

    def retain(self, tensor: Tensor) -> None:
        """Give `tensor`, an output of this node, its gradient when backward passes."""
        if self._retained is None:
            self._retained = []
        self._retained.append(weakref.ref(tensor))

    def retained(self):
        """The live tensors whose gradients are to be kept, see `Tensor.retain_grad`."""
        return [t for ref in self._retained or () if (t := ref()) is not None]

    def release(self) -> None:
        """Free what was kept for backward and lift the write locks."""
        if _mode.profiler is not None:
            _mode.profiler.released(self)
        self._unlock()
        self._inputs = self._outputs = None
        self.edges = ()
        self._drop_buffers()
        self._released = True

    def _unlock(self):
        if self._locked:
            locked, self._locked = self._locked, ()
            for storage in locked:
                storage.unlock()

    def _drop_buffers(self):
        for name in self.buffers:
            self.__dict__.pop(name, None)

    def __del__(self):
        self._unlock()


def _as_tensors(inputs):
    for t in inputs:
        if not isinstance(t, Tensor):
            break
    else:
        return inputs
    like = next((t for t in inputs if isinstance(t, Tensor)), None)
    return tuple(as_tensor(t, like) for t in inputs)


def check_one_device(name: str, arrays) -> None:
    """ValueError naming the operation and the devices unless all arrays are on one device."""
    first = type(arrays[0])
    for array in arrays:
        if type(array) is not first:
            break
    else:
        return
    devices = [device_of(a) for a in arrays]
    if len(set(devices)) > 1:
        raise ValueError(
            f"{name}: all tensors must be on one device, got "
            f"{', '.join(devices)}: move them with to(device)"
        )


def _wrap_output(result, inputs) -> Tensor:
    """Wrap an array made by forward; a view of an input shares that input's version."""
    if type(result) is not np.ndarray and (
        isinstance(result, np.generic) or not hasattr(result, "dtype")
    ):
        result = np.asarray(result)
    owner = result if result.base is None else result.base
    for t in inputs:
        array = t._array
        if result is array or owner is (array if array.base is None else array.base):
            return Tensor._wrap(result, t._storage)
    return Tensor._wrap(result, Storage())

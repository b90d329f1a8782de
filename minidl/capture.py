"""Work of a GPU recorded once, as a CUDA graph, and replayed: Python costs nothing per kernel.

    def forward_backward(images, labels):
        loss = cross_entropy(model(images), labels)
        loss.backward()
        return loss

    step = Captured(forward_backward, model.parameters())
    for images, labels in batches:
        loss = step(images, labels)          # gradients are set as by forward_backward itself
        optimizer.step()

The numbers are those of calling the function, to the bit: dropout draws the next masks, running
statistics move on.
"""

from kernels.cuda.recording import Recording
from minidl import random
from minidl.array_module import is_array, is_recording, to_device
from minidl.tensor import Tensor


class CaptureError(RuntimeError):
    """The function does something that cannot be recorded."""


class Captured:
    """``function(*tensors)``, which returns a Tensor or a tuple of Tensors, on a GPU.

    The first call runs it as it is, which compiles what there is to compile; the second records it,
    and from then on it is replayed. Inputs are Tensors or arrays, from either device, of the shapes
    and dtypes of the first call: they are copied to where the function found them then. Results are
    overwritten by the next call, and carry no graph: backward belongs into the function.

    `parameters` are the leaves whose gradients it computes: a call replaces them, and the next one
    overwrites those. Where one of them has another array than before, or another `requires_grad`,
    the call is a first one again. Whatever else it reads or writes (running statistics, parameters
    in inference) has to stay where it is: what `Module.to` or `data` replace is not looked for.

    What only Python does happens once, when it is recorded: choices (training or evaluation,
    `no_grad`, precision), numbers (a momentum, a probability), hooks, checks of values. Nothing may
    wait for the GPU (`item()`, `numpy()`, printing) nor be copied from the CPU, as arrays that are
    not among the inputs would be: CaptureError, after which the object is as before. ValueError for
    inputs that do not fit, RuntimeError for a call while something else is recorded.
    """

    def __init__(self, function, parameters=()):
        self._function = function
        self._parameters = tuple(parameters)
        self._inputs = None
        self._recording = None
        self._seen = None  # the parameters, when the function last ran as it is
        self._results = None
        self._gradients = ()
        self._masks = 0  # of dropout, in one call

    def fits(self, *inputs) -> bool:
        """Whether a call can take these inputs. The first can take any."""
        return self._inputs is None or _kinds(inputs) == _kinds(self._inputs)

    def __call__(self, *inputs):
        if is_recording():
            raise RuntimeError("inside, only the function of a Captured itself can be recorded")
        if not self.fits(*inputs):
            raise ValueError(
                f"inputs must be {_text(self._inputs)}, as in the first call, got {_text(inputs)}: "
                "what is recorded knows no other sizes"
            )
        for p in self._parameters:
            p.zero_grad()
        inputs = self._placed(inputs)
        if self._seen is None or self._changed():
            return self._run_as_it_is(inputs)
        if self._recording is None:
            self._record()
        return self._replay()

    def _placed(self, inputs):
        """The inputs, in the memory where a recording finds them."""
        if self._inputs is None:
            return tuple([_copy_on_gpu(value) for value in inputs])
        for mine, value in zip(self._inputs, inputs, strict=True):
            mine.copy_(value)
        return self._inputs

    def _run_as_it_is(self, inputs):
        self._seen = self._recording = self._results = None
        self._gradients = ()
        results = _detached(self._function(*inputs))
        # An error leaves the first call, or this one, still to come.
        self._inputs, self._seen = inputs, self._state_of_parameters()
        return results

    def _replay(self):
        self._recording.launch(*random.next_dropout_step(self._masks))
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad = None if gradient is None else _overwritten(gradient)
        if isinstance(self._results, tuple):
            return tuple([_overwritten(result) for result in self._results])
        return _overwritten(self._results)

    def _state_of_parameters(self):
        """What a recording takes for granted of them."""
        return [(p._array, p.requires_grad) for p in self._parameters]

    def _changed(self):
        """Whether a parameter lies elsewhere than when the function last ran as it is, or needs a
        gradient that it did not make then: by kernels that may have to be compiled first.
        """
        return any(
            [
                p._array is not array or p.requires_grad != needed
                for p, (array, needed) in zip(self._parameters, self._seen, strict=True)
            ]
        )

    def _record(self):
        recording, state = Recording(), random.get_state()
        seed, first = random.next_dropout_step(0)
        try:
            results = recording.record(lambda: self._function(*self._inputs), seed, first)
        except Exception as error:
            for p in self._parameters:
                p.zero_grad()
            raise CaptureError(
                f"{getattr(self._function, '__qualname__', self._function)} cannot be recorded: "
                f"{error}. Inside, nothing may wait for the GPU (item(), numpy(), checks of "
                "values) and nothing be copied from the CPU: give such arrays as inputs, and "
                "leave the rest outside"
            ) from error
        finally:
            masks = random.next_dropout_step(0)[1] - first
            random.set_state(state)
        self._masks, self._recording, self._results = masks, recording, _detached(results)
        self._gradients = [p.grad for p in self._parameters]


def _array(value):
    array = value._array if isinstance(value, Tensor) else value
    if not is_array(array):
        raise TypeError(f"inputs must be Tensors or arrays, got {type(value).__name__}")
    return array


def _copy_on_gpu(value):
    return Tensor._wrap(to_device(_array(value), "cuda").copy())


def _detached(results):
    several = results if isinstance(results, tuple) else (results,)
    for result in several:
        if not isinstance(result, Tensor):
            raise TypeError(
                "the function must return a Tensor or a tuple of Tensors, got "
                f"{type(result).__name__}"
            )
    detached = tuple([result.detach() for result in several])
    return detached if isinstance(results, tuple) else detached[0]


def _overwritten(tensor):
    """A new Tensor for what a replay wrote into the memory of `tensor`.

    A graph that still needs what was there notices.
    """
    tensor._storage.version += 1
    return tensor.detach()


def _kinds(inputs):
    return [(array.shape, array.dtype) for array in map(_array, inputs)]


def _text(inputs):
    return ", ".join([f"{dtype} of shape {shape}" for shape, dtype in _kinds(inputs)])

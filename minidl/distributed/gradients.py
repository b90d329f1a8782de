"""Gradients averaged over ranks while backward still computes the others.

Parameters are put into buckets from the last to the first, the order in which backward completes
them. A full bucket is sent off at once; its sum is on its way while backward goes on. The plan
depends on nothing but the parameters, and buckets go off in its order, so that all ranks always
add the same numbers (Li et al., "PyTorch distributed: experiences on accelerating data parallel
training", VLDB 2020, section 3.2).
"""

from minidl.array_module import get_array_module
from minidl.tensor import Tensor

DEFAULT_BUCKET_BYTES = 25 * 2**20


class GradientAverager:
    """Averages the gradients of parameters over the ranks of a world.

    `named_parameters`: (name, Parameter) pairs as of `Module.named_parameters`, the same on every
    rank. A bucket holds up to `bucket_bytes` of gradients of one dtype; one larger parameter has a
    bucket for itself. Between `begin` and `finish` lies one backward, of gradients that were None.

    A parameter that this rank's backward did not reach counts as zero; where no rank's reached it,
    its `grad` is None, as after the backward of one process. Raises ValueError for `bucket_bytes`
    below 1 or no parameter that requires grad.
    """

    def __init__(self, world, named_parameters, bucket_bytes: int = DEFAULT_BUCKET_BYTES):
        if bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be at least 1, got {bucket_bytes}")
        trained = [(name, p) for name, p in named_parameters if p.requires_grad]
        if not trained:
            raise ValueError("named_parameters must hold one that requires grad, got none")
        self._world = world.duplicate()
        plan = _plan(trained, bucket_bytes)
        self._buckets = [_Bucket(i, len(plan), part) for i, part in enumerate(plan, 1)]
        self._places = {
            id(p): (bucket, place)
            for bucket in self._buckets
            for place, p in enumerate(bucket.parameters)
        }
        self._pending = None  # between begin and finish: what has been sent off
        self._handles = [p.register_post_accumulate_grad_hook(self._complete) for _, p in trained]

    def close(self) -> None:
        """Leave the parameters alone from here on."""
        for handle in self._handles:
            handle.remove()

    def begin(self) -> None:
        """From here on gradients are sent off as they are completed."""
        for bucket in self._buckets:
            bucket.clear()
        self._pending = []

    def finish(self, count: float) -> None:
        """Wait until every `grad` is its sum over the ranks divided by `count`.

        Divide by the number of ranks for their plain average; where each rank's gradient is a sum
        over its samples, by the number of all samples. CollectiveTimeout as the World's.
        """
        for bucket in self._buckets:
            bucket.fill_up()
        self._send()
        for bucket, pending in zip(self._buckets, self._pending, strict=True):
            pending.wait()
            bucket.hand_out(count)
        self._pending = None

    def _complete(self, parameter):
        if self._pending is None:
            return
        bucket, place = self._places[id(parameter)]
        bucket.fill(place)
        self._send()
        for pending in self._pending:
            pending.test()

    def _send(self):
        """Send off what is full, up to the first bucket that is not."""
        while len(self._pending) < len(self._buckets):
            bucket = self._buckets[len(self._pending)]
            if bucket.missing:
                return
            self._pending.append(self._world.start_sum(bucket.flat, bucket.label))


def _plan(named, bucket_bytes) -> list[list]:
    """Named parameters from the last to the first, in lists of at most so many bytes."""
    plan, open_lists = [], {}  # dtype -> (list, bytes in it)
    for name, p in reversed(named):
        nbytes = p.size * p.dtype.itemsize
        part, filled = open_lists.get(p.dtype, (None, 0))
        if part is None or filled + nbytes > bucket_bytes:
            part, filled = [], 0
            plan.append(part)
        part.append((name, p))
        open_lists[p.dtype] = part, filled + nbytes
    return plan


class _Bucket:
    """Some parameters and one flat array: their gradients, then for each whether it has one."""

    def __init__(self, number, count, named):
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.label = (
            f"gradients, bucket {number} of {count} ({self.names[0]} to {self.names[-1]})"
        )
        first = self.parameters[0]
        values = sum(p.size for p in self.parameters)
        xp = get_array_module(first._array)
        self.flat = xp.empty(values + len(named), first.dtype)
        self._has_gradient = self.flat[values:]
        self._slices, start = [], 0
        for p in self.parameters:
            self._slices.append(self.flat[start : start + p.size].reshape(p.shape))
            start += p.size
        self.missing = set()

    def clear(self):
        self.missing = set(range(len(self.parameters)))

    def fill(self, place):
        if place not in self.missing:
            raise RuntimeError(
                f"{self.names[place]}: a second backward between begin() and finish()"
            )
        self.missing.remove(place)
        gradient = self.parameters[place].grad._array
        if gradient.dtype != self.flat.dtype:
            raise TypeError(
                f"the gradient of {self.names[place]} must be {self.flat.dtype}, as its parameter "
                f"was, got {gradient.dtype}"
            )
        self._slices[place][...] = gradient
        self._has_gradient[place] = 1

    def fill_up(self):
        for place in self.missing:
            self._slices[place][...] = 0
            self._has_gradient[place] = 0
        self.missing = set()

    def hand_out(self, count):
        has_gradient = self._has_gradient.tolist()
        for p, total, used in zip(self.parameters, self._slices, has_gradient, strict=True):
            if not used:
                p.grad = None
            elif p.grad is None:
                p.grad = Tensor._wrap(total / count)
            else:
                with p.grad.mutate() as gradient:
                    get_array_module(gradient).divide(total, count, out=gradient)

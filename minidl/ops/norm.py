"""Batch normalisation and local response normalisation.

Their ordinary backward is one fused kernel. Where the backward itself is to be differentiated
(`create_graph`), the same formula runs as a composition of ops.
"""

from kernels.dispatch import kernels_for
from minidl.function import Function, check_one_device
from minidl.ops.elementwise import behind_rectifier, relu, taken
from minidl.ops.shape import pad
from minidl.tensor import Tensor, is_grad_enabled, is_traced

_IMAGE_AXES = (0, 2, 3)


def _per_channel(t: Tensor) -> Tensor:
    return t.reshape(1, -1, 1, 1)


class BatchNormTrain(Function):
    """`running`: (mean, var, momentum), arrays that forward moves towards the batch's."""

    keep_inputs = (0, 1)
    buffers = ("mean", "inv_std")
    takes_grad = True

    def __init__(self, eps, rectify, running):
        self.eps = eps
        self.keep_outputs = rectify
        self.running = running

    def forward(self, x, weight, bias, others=None):
        y, self.mean, _, self.inv_std = kernels_for(x).batchnorm_train(
            x, weight, bias, self.eps, others, self.keep_outputs, self.running
        )
        del self.running  # the node need not keep them
        return y

    def backward(self, grad):
        x, weight, _, *others = self.inputs
        y, inplace = self.outputs[0] if self.keep_outputs else None, self.grad_is_free
        if y is not None and (others or is_grad_enabled()):
            # The others want the gradient behind the rectifier for themselves.
            grad, y = behind_rectifier(grad, y, inplace), None
        if is_grad_enabled():
            grads = self._composed(grad, x, weight)
        else:
            out, storage = taken(grad, inplace and not others)
            dx, *sums = kernels_for(grad._array).batchnorm_backward(
                grad._array, x._array, weight._array, self.mean, self.inv_std,
                None if y is None else y._array, out,
            )  # fmt: skip
            grads = Tensor._wrap(dx, storage), *(Tensor._wrap(array) for array in sums)
        return (*grads, grad) if others else grads

    def _composed(self, grad, x, weight):
        """Ioffe and Szegedy 2015, section 3, the unnumbered equations of the backward pass."""
        centred = x - x.mean(axis=_IMAGE_AXES, keepdims=True)
        var = (centred * centred).mean(axis=_IMAGE_AXES, keepdims=True)
        inv_std = (var + self.eps) ** -0.5
        normal = centred * inv_std
        product = grad * normal
        dx = (
            _per_channel(weight)
            * inv_std
            * (
                grad
                - grad.mean(axis=_IMAGE_AXES, keepdims=True)
                - normal * product.mean(axis=_IMAGE_AXES, keepdims=True)
            )
        )
        return dx, product.sum(axis=_IMAGE_AXES), grad.sum(axis=_IMAGE_AXES)


class BatchNormEval(Function):
    keep_inputs = (0, 1, 3, 4)

    def __init__(self, eps):
        self.eps = eps

    def forward(self, x, weight, bias, mean, var):
        return kernels_for(x).batchnorm_eval(x, weight, bias, mean, var, self.eps)

    def backward(self, grad):
        x, weight, _, mean, var = self.inputs
        inv_std = (var + self.eps) ** -0.5
        if is_grad_enabled():
            normal = (x - _per_channel(mean)) * _per_channel(inv_std)
            dx = grad * _per_channel(weight * inv_std)
            dweight = (grad * normal).sum(axis=_IMAGE_AXES)
            return dx, dweight, grad.sum(axis=_IMAGE_AXES), None, None
        grads = kernels_for(grad._array).batchnorm_eval_backward(
            grad._array, x._array, weight._array, mean._array, inv_std._array
        )
        return (*(Tensor._wrap(g) for g in grads), None, None)


class BatchNormAffine(Function):
    """The kernel of `batch_norm_affine`, which takes itself apart where a graph is recorded."""

    keep_inputs = False

    def __init__(self, eps):
        self.eps = eps

    def forward(self, weight, bias, mean, var):
        return kernels_for(weight).batchnorm_affine(weight, bias, mean, var, self.eps)


def batch_norm(
    x, weight, bias, running_mean, running_var, training, momentum=0.1, eps=1e-5, others=None,
    rectify=False,
) -> Tensor:  # fmt: skip
    """Normalise each channel of x (N, C, H, W), then scale by `weight` and shift by `bias` (C,).

    To the result `others`, of x's shape, are added, and if `rectify` ReLU is taken: in training
    that is one pass with the normalisation.

    In training the batch's own mean and biased variance are used, and `running_mean`,
    `running_var` (C,) are updated in place: running = (1 - momentum) running + momentum batch, the
    variance there being the unbiased one. Otherwise the running statistics are used.
    Ioffe and Szegedy 2015, algorithms 1 and 2.

    Raises ValueError for shapes that do not fit, training on one value a channel, or tensors on two
    devices.
    """
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {x.shape}")
    named = {"weight": weight, "bias": bias, "running_mean": running_mean,
             "running_var": running_var}  # fmt: skip
    _check_per_channel(named, x.shape[1], "x", x.dtype)
    if not training:
        y = BatchNormEval(eps)(x, weight, bias, running_mean, running_var)
        y = y if others is None else y + others
        return relu(y, inplace=True) if rectify else y
    if others is not None and (others.shape, others.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"others must have x's shape {x.shape} and dtype {x.dtype}, got {others.shape} and "
            f"{others.dtype}"
        )
    check_one_device("batch_norm", [t._array for t in (x, running_mean, running_var)])
    inputs = (x, weight, bias) if others is None else (x, weight, bias, others)
    with running_mean.mutate() as mean, running_var.mutate() as var:
        return BatchNormTrain(eps, bool(rectify), (mean, var, momentum))(*inputs)


def batch_norm_affine(weight, bias, running_mean, running_var, eps=1e-5) -> tuple[Tensor, Tensor]:
    """(scale, shift) (C,), with which `batch_norm` is x scale + shift where it does not train.

    All arguments but eps are (C,), of one dtype: ValueError or TypeError for others. One kernel
    where no graph is recorded. Ioffe and Szegedy 2015, algorithm 2, step 11.
    """
    if weight.ndim != 1:
        raise ValueError(f"weight must have shape (C,), got {weight.shape}")
    named = {"bias": bias, "running_mean": running_mean, "running_var": running_var}
    _check_per_channel(named, weight.size, "weight", weight.dtype)
    if is_grad_enabled() or is_traced():
        scale = weight / (running_var + eps) ** 0.5
        return scale, bias - running_mean * scale
    return BatchNormAffine(eps)(weight, bias, running_mean, running_var)


def _check_per_channel(named, channels, of, dtype):
    for name, t in named.items():
        if t.shape != (channels,):
            raise ValueError(f"{name} must have shape ({channels},), got {t.shape}")
        if t.dtype != dtype:
            raise TypeError(f"{name} must have {of}'s dtype {dtype}, got {t.dtype}")


class LocalResponseNorm(Function):
    buffers = ("scale",)

    def __init__(self, size, alpha, beta, k, size_normalized):
        self.settings = (size, alpha, beta, k, size_normalized)

    def forward(self, x):
        y, self.scale = kernels_for(x).lrn(x, *self.settings)
        return y

    def backward(self, grad):
        (x,) = self.inputs
        if is_grad_enabled():
            return self._composed(grad, x)
        kernels = kernels_for(grad._array)
        return Tensor._wrap(
            kernels.lrn_backward(grad._array, x._array, self.scale, *self.settings)
        )

    def _composed(self, grad, x):
        size, alpha, beta, k, size_normalized = self.settings
        if size_normalized:
            alpha = alpha / size
        before, after = size // 2, (size - 1) // 2
        scale = k + alpha * _window_sum(x * x, before, after)
        # j's window reaches i where i's mirrored window reaches j.
        through = _window_sum(grad * x * scale ** (-beta - 1), after, before)
        return grad * scale**-beta - (2 * alpha * beta) * x * through


def _window_sum(t: Tensor, before: int, after: int) -> Tensor:
    """Sum over channels c - before ... c + after, clipped at the ends."""
    channels = t.shape[1]
    padded = pad(t, ((0, 0), (before, after), (0, 0), (0, 0)))
    total = padded[:, :channels]
    for shift in range(1, before + after + 1):
        total = total + padded[:, shift : shift + channels]
    return total


def local_response_norm(
    x, size, alpha=1e-4, beta=0.75, k=1.0, size_normalized=True
) -> Tensor:
    """x / (k + alpha' * sum of squares over `size` neighbouring channels) ** beta.

    x (N, C, H, W). alpha' is alpha / size as in Caffe, PyTorch and ONNX, or alpha itself with
    ``size_normalized=False``: Krizhevsky et al. 2012, section 3.3.
    Raises ValueError for a size below 1 or an x that is not 4-D.
    """
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {x.shape}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive integer, got {size!r}")
    return LocalResponseNorm(size, alpha, beta, k, bool(size_normalized))(x)

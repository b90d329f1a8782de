"""Steps of optimisers on the GPU; the definitions stand in kernels.reference.optim."""

from kernels import reference
from kernels.cuda import runtime
from kernels.reference.optim import adam_corrections, check_step


def _lie_flat(*arrays):
    return all([array.flags.c_contiguous for array in arrays])


def sgd_step(values, gradient, velocity, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """See kernels.reference.sgd_step."""
    check_step(values, gradient=gradient, velocity=velocity)
    settings = lr, momentum, nesterov, weight_decay
    if not _lie_flat(values, values if velocity is None else velocity):
        reference.sgd_step(values, gradient, velocity, *settings)
        return
    args = (
        values, runtime.contiguous(gradient), velocity, float(lr), float(momentum),
        bool(nesterov), float(weight_decay), values.size,
    )  # fmt: skip
    runtime.launch_elements("optim", "sgd_step", values.dtype, values.size, args)


def adam_step(
    values, gradient, mean, square, step, lr, betas, eps, weight_decay=0.0, decoupled=False
):
    """See kernels.reference.adam_step."""
    check_step(values, gradient=gradient, mean=mean, square=square)
    if not _lie_flat(values, mean, square):
        settings = step, lr, betas, eps, weight_decay, decoupled
        reference.adam_step(values, gradient, mean, square, *settings)
        return
    rate, correction = adam_corrections(step, lr, betas)
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    numbers = 1 - betas[0], betas[1], 1 - betas[1], rate, correction, eps, decay, shrink
    args = (
        values, runtime.contiguous(gradient), mean, square,
        *(float(number) for number in numbers), values.size,
    )  # fmt: skip
    runtime.launch_elements("optim", "adam_step", values.dtype, values.size, args)

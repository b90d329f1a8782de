"""Steps of optimisers on the GPU; the definitions stand in kernels.reference.optim.

A launch steps many parameters, whose arrays it gets as a table (see tables.cuh).
"""

from kernels import reference
from kernels.cuda import runtime
from kernels.reference.optim import adam_corrections, check_step

# As in optim.cu: elements a thread, and rows a table.
_BLOCK_ELEMENTS = 4 * runtime.THREADS
_ROWS = {"sgd_step": 110, "adam_step": 90}


def sgd_step(values, gradient, velocity, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """See kernels.reference.sgd_step."""
    sgd_steps([(values, gradient, velocity)], lr, momentum, nesterov, weight_decay)


def sgd_steps(parameters, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """See kernels.reference.optim.sgd_steps."""
    numbers = float(lr), float(momentum), bool(nesterov), float(weight_decay)
    for arrays in _launch("sgd_step", parameters, numbers):
        reference.sgd_step(*arrays, lr, momentum, nesterov, weight_decay)


def adam_step(
    values, gradient, mean, square, step, lr, betas, eps, weight_decay=0.0, decoupled=False
):
    """See kernels.reference.adam_step."""
    parameters = [(values, gradient, mean, square)]
    adam_steps(parameters, step, lr, betas, eps, weight_decay, decoupled)


def adam_steps(parameters, step, lr, betas, eps, weight_decay=0.0, decoupled=False):
    """See kernels.reference.optim.adam_steps."""
    rate, correction = adam_corrections(step, lr, betas)
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    numbers = 1 - betas[0], betas[1], 1 - betas[1], rate, correction, eps, decay, shrink
    for arrays in _launch("adam_step", parameters, [float(number) for number in numbers]):
        reference.adam_step(*arrays, step, lr, betas, eps, weight_decay, decoupled)


def _launch(kernel, parameters, numbers):
    """Step all parameters but those returned, whose arrays do not lie flat."""
    rows, others = {}, []
    for values, gradient, *state in parameters:
        _check(values, gradient, *state)
        if not _lie_flat(values, *state):
            others.append((values, gradient, *state))
        elif values.size:
            row = (values, runtime.contiguous(gradient), *state)
            rows.setdefault(values.dtype, []).append(row)
    for dtype, of_dtype in rows.items():
        for start in range(0, len(of_dtype), _ROWS[kernel]):
            part = of_dtype[start : start + _ROWS[kernel]]
            table = runtime.Table(part, _BLOCK_ELEMENTS, _ROWS[kernel])
            runtime.launch(
                "optim", kernel, dtype, table.blocks, runtime.THREADS, (table, *numbers)
            )
    return others


def _check(values, gradient, *state):
    """Raises as `check_step`, which is asked only where something is wrong: a step has many."""
    dtype, shape = values.dtype, values.shape
    others = [array for array in (gradient, *state) if array is not None]
    if dtype.char in "fd" and all([a.dtype == dtype and a.shape == shape for a in others]):
        return
    names = ("velocity",) if len(state) == 1 else ("mean", "square")
    check_step(values, gradient=gradient, **dict(zip(names, state, strict=True)))


def _lie_flat(*arrays):
    return all([array is None or array.flags.c_contiguous for array in arrays])

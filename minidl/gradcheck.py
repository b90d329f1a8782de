"""Gradients checked against finite differences, in float64.

For y = f(x) with Jacobian J and any direction v, the central difference

    (f(x + eps v) - f(x - eps v)) / (2 eps) = J v + O(eps^2)

is compared with what backward gives. The full check takes all unit vectors v and compares J entry
by entry; the fast one takes one random direction an input and one random weighting u of the
outputs, and compares u^T J v: two evaluations an input, however large it is.

Where the two disagree, the differences to the left and to the right are compared as well: if they
disagree with each other, the point is a kink (a tie of max, ReLU at 0), and the error says so.
"""

import numpy as np

from minidl import random
from minidl.array_module import to_device
from minidl.graph import grad
from minidl.tensor import Tensor, enable_grad, no_grad


class GradcheckError(AssertionError):
    """Backward and the finite differences disagree."""


class NonDifferentiableError(GradcheckError):
    """The function has a kink at, or within a step of, the point of the check."""


def gradcheck(
    fn, inputs, *, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3, fast: bool = False,
    seed: int = 0, names=None, raise_exception: bool = True,
) -> bool:  # fmt: skip
    """Check backward of ``fn(*inputs)`` against central differences of step `eps`.

    `inputs`: a Tensor or several; those that require grad must be float64 (ValueError) and are the
    ones checked. `fn` returns a Tensor or several, whose integer ones are ignored, and must give
    the same result for the same input. An entry agrees where |analytic - numerical| <= atol + rtol
    |numerical|. `names` replace "input 0", ... in messages.

    Returns True, or raises GradcheckError describing the first entry that disagrees
    (NonDifferentiableError at a kink); with ``raise_exception=False`` returns False instead.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    # Private copies: perturbing the user's own arrays could be seen from elsewhere.
    inputs = tuple(_copy(t) for t in inputs)
    checked = [i for i, t in enumerate(inputs) if t.requires_grad]
    if not checked:
        raise ValueError("inputs must hold a tensor that requires grad, got none")
    labels = {i: names[i] if names else f"input {i}" for i in checked}
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise ValueError(f"{labels[i]} must be float64 to be checked, got {inputs[i].dtype}")
    check = _Check(fn, inputs, labels, eps, atol, rtol, np.random.default_rng(seed))
    try:
        check.repeatable()
        if fast:
            check.directions(checked)
        else:
            for i in checked:
                check.jacobian(i)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(fn, inputs, **options) -> bool:
    """Check the second derivatives: `gradcheck` of the gradients of ``fn`` under random weights.

    The weights are inputs too, so that the derivative by them is checked as well. Options and
    errors are those of `gradcheck`.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    with no_grad():
        places = [(y.shape, y.device) for y in _floating(fn(*inputs))]
    draw = np.random.default_rng(options.get("seed", 0))
    weights = tuple(
        Tensor(to_device(draw.standard_normal(shape), device), requires_grad=True)
        for shape, device in places
    )
    count = len(inputs)
    wanted = [i for i, t in enumerate(inputs) if t.requires_grad]

    def gradients(*operands):
        with enable_grad():
            outputs = _floating(fn(*operands[:count]))
            pairs = zip(outputs, operands[count:], strict=True)
            pairs = [(y, weight) for y, weight in pairs if y.requires_grad]
            grads = grad(
                [y for y, _ in pairs], [operands[i] for i in wanted], [w for _, w in pairs],
                create_graph=True, allow_unused=True,
            )  # fmt: skip
        return tuple(g for g in grads if g is not None and g.requires_grad)

    with_graph = gradients(*(_copy(t) for t in (*inputs, *weights)))
    if not with_graph:  # constant gradients, whose derivative is zero
        return True
    return gradcheck(gradients, (*inputs, *weights), **options)


def gradcheck_module(
    module, *inputs, fast: bool = True, eps=1e-6, atol=1e-5, rtol=1e-3, seed=0
) -> bool:
    """`gradcheck` of a Module by all its parameters and by the inputs that require grad.

    Parameters must be float64 (``module.to("float64")``). Every evaluation starts from the same
    random state and buffers, so that dropout's masks repeat; module and random state are left as
    they were. Raises as `gradcheck`, with the parameters' names.
    """
    parameters = dict(module.named_parameters())
    buffers = [(b, b._array.copy()) for b in module.buffers()]
    state = random.get_state()
    before = {name: p._array.copy() for name, p in parameters.items()}

    def evaluate(*operands):
        for buffer, values in buffers:
            buffer.copy_(values)
        random.set_state(state)
        with _Swapped(module, dict(zip(parameters, operands[len(inputs) :], strict=True))):
            return module(*operands[: len(inputs)])

    names = [f"input {i}" for i in range(len(inputs))] + [f"parameter {n}" for n in parameters]
    try:
        return gradcheck(
            evaluate, (*inputs, *parameters.values()), eps=eps, atol=atol, rtol=rtol, fast=fast,
            seed=seed, names=names,
        )  # fmt: skip
    finally:
        for buffer, values in buffers:
            buffer.copy_(values)
        random.set_state(state)
        for name, p in parameters.items():
            assert (p._array == before[name]).all(), f"{name} changed during the check"


def move_biases(module, std: float = 0.1, seed: int = 0) -> None:
    """Draw every parameter named "bias" from N(0, std^2).

    In a fresh network, whose biases are 0, a unit that sees only dead ones rests exactly on the
    kink of its ReLU, where no finite difference can be checked.
    """
    draw = np.random.default_rng(seed)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] == "bias":
            parameter.copy_(to_device(draw.normal(0, std, parameter.shape), parameter.device))


class _Swapped:
    """Puts other tensors in the place of a module's parameters for the length of a block."""

    def __init__(self, module, replacements):
        self.slots = []
        by_parameter = {id(p): replacements[name] for name, p in module.named_parameters()}
        for owner in module.modules():
            for key, parameter in owner._parameters.items():
                if parameter is not None:
                    self.slots.append((owner._parameters, key, by_parameter[id(parameter)]))

    def __enter__(self):
        self.originals = [table[key] for table, key, _ in self.slots]
        for table, key, tensor in self.slots:
            table[key] = tensor

    def __exit__(self, *exc):
        for (table, key, _), original in zip(self.slots, self.originals, strict=True):
            table[key] = original


class _Check:
    def __init__(self, fn, inputs, labels, eps, atol, rtol, draw):
        self.fn = fn
        self.inputs = inputs
        self.labels = labels
        self.eps = eps
        self.atol = atol
        self.rtol = rtol
        self.draw = draw

    def outputs(self):
        """The floating outputs, with a graph."""
        outputs = _floating(self.fn(*self.inputs))
        if not outputs:
            raise ValueError("fn must return a floating-point tensor, got none")
        return outputs

    def arrays(self):
        """The values of the outputs, copied to the CPU, without a graph."""
        with no_grad():
            return [to_device(y._array.copy(), "cpu") for y in self.outputs()]

    def repeatable(self):
        first, second = self.arrays(), self.arrays()
        for a, b in zip(first, second, strict=True):
            if not np.array_equal(a, b, equal_nan=True):
                raise GradcheckError(
                    "fn gave two results for one input: fix its random state to check it"
                )

    def shifted(self, i, direction, step):
        """The outputs at input i + step * direction."""
        kept = self.inputs[i]._array.copy()
        with self.inputs[i].mutate() as array:
            array += to_device(step * direction, self.inputs[i].device)
        try:
            return self.arrays()
        finally:
            with self.inputs[i].mutate() as array:
                array[...] = kept

    def analytic(self, y, wanted, weights):
        """weights^T J of the output y by each of the inputs numbered `wanted`; keeps the graph.

        All arrays, of weights and of results, on the CPU.
        """
        results = [None] * len(wanted)
        if y.requires_grad:
            inputs = [self.inputs[i] for i in wanted]
            weights = Tensor(to_device(weights, y.device))
            results = grad(y, inputs, weights, retain_graph=True, allow_unused=True)
        return [
            np.zeros(self.inputs[i].shape) if result is None else to_device(result._array, "cpu")
            for i, result in zip(wanted, results, strict=True)
        ]

    def jacobian(self, i):
        source = self.inputs[i]._array
        outputs = self.outputs()
        numerical = [np.empty((source.size, y.size)) for y in outputs]
        analytic = [np.empty((source.size, y.size)) for y in outputs]
        for y, columns in zip(outputs, analytic, strict=True):
            for row in range(y.size):
                weights = np.zeros(y.shape)
                weights.flat[row] = 1
                columns[:, row] = self.analytic(y, [i], weights)[0].ravel()
        for k in range(source.size):
            unit = np.zeros(source.shape)
            unit.flat[k] = 1
            plus, minus = (self.shifted(i, unit, sign * self.eps) for sign in (1, -1))
            for o, (p, m) in enumerate(zip(plus, minus, strict=True)):
                numerical[o][k] = (p - m).ravel() / (2 * self.eps)
        for o, y in enumerate(outputs):
            self._compare(i, o, y.shape, analytic[o], numerical[o])

    def _compare(self, i, o, y_shape, analytic, numerical):
        agree = np.abs(analytic - numerical) <= self.atol + self.rtol * np.abs(numerical)
        if agree.all():
            return
        k, row = (int(n) for n in np.argwhere(~agree)[0])
        shape = self.inputs[i].shape
        place = tuple(int(n) for n in np.unravel_index(k, shape))
        y_place = tuple(int(n) for n in np.unravel_index(row, y_shape))
        unit = np.zeros(shape)
        unit.flat[k] = 1
        what = f"d output {o}{list(y_place)} / d {self.labels[i]}{list(place)}"
        weights = np.zeros(y_shape)
        weights.flat[row] = 1
        self._fail(
            i, o, unit, weights, what, analytic[k, row], numerical[k, row],
            f"{int((~agree).sum())} of {agree.size} entries disagree; the first is ",
        )  # fmt: skip

    def directions(self, checked):
        """Compare u^T J v for one random weighting u an output and unit direction v an input."""
        outputs = self.outputs()
        weights = [self.draw.standard_normal(y.shape) for y in outputs]
        pairs = zip(outputs, weights, strict=True)
        analytic = [self.analytic(y, checked, u) for y, u in pairs]
        del outputs, pairs  # and with them the graph's buffers, before the forwards below
        for place, i in enumerate(checked):
            v = self.draw.standard_normal(self.inputs[i].shape)
            v /= max(float(np.sqrt((v * v).sum())), 1e-300)
            expected = [float((gradients[place] * v).sum()) for gradients in analytic]
            self._compare_slopes(i, v, weights, expected)

    def _compare_slopes(self, i, v, weights, expected):
        """Compare the slopes of u^T output along v with `expected`, one an output.

        In a large network some rectifier may switch within the step. Smaller steps leave that kink
        outside; a wrong gradient is as wrong at every step.
        """
        for step in (self.eps, self.eps / 10, self.eps / 100):
            plus, minus = (self.shifted(i, v, sign * step) for sign in (1, -1))
            numerical = [float((u * (p - m)).sum() / (2 * step))
                         for u, p, m in zip(weights, plus, minus, strict=True)]  # fmt: skip
            wrong = [o for o, (a, n) in enumerate(zip(expected, numerical, strict=True))
                     if not abs(a - n) <= self.atol + self.rtol * abs(n)]  # fmt: skip
            if not wrong:
                return
        o = wrong[0]
        what = f"u^T (d output {o} / d {self.labels[i]}) v, random u and v"
        self._fail(i, o, v, weights[o], what, expected[o], numerical[o], "")

    def _fail(self, i, o, direction, weights, what, analytic, numerical, prefix):
        if self._is_kink(i, o, direction, weights):
            raise NonDifferentiableError(
                f"{what}: not differentiable here, the differences to the left and to the right "
                "disagree: move the input away from ties and kinks"
            )
        raise GradcheckError(
            f"{prefix}{what}: backward gives {analytic:.9g}, central differences {numerical:.9g} "
            f"(difference {abs(analytic - numerical):.3g}, allowed "
            f"{self.atol + self.rtol * abs(numerical):.3g})"
        )

    def _is_kink(self, i, o, direction, weights):
        """True where one-sided slopes differ, and keep differing as the step is halved.

        A smooth function's difference of slopes shrinks with the step, a kink's stays.
        """
        gaps = []
        for step in (self.eps, self.eps / 2):
            minus, centre, plus = (
                float((weights * self.shifted(i, direction, s)[o]).sum()) for s in (-step, 0, step)
            )
            gaps.append(abs((plus - centre) - (centre - minus)) / step)
        scale = self.atol + self.rtol
        return gaps[0] > 10 * scale and gaps[1] > 0.75 * gaps[0]


def _copy(t: Tensor) -> Tensor:
    return Tensor(t._array.copy(), requires_grad=t.requires_grad)


def _floating(outputs) -> list[Tensor]:
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return [y for y in outputs if y.dtype.kind == "f"]

"""Mixed precision: products of float16 operands, everything else in float32, gradients scaled.

    scaler = GradScaler()
    with autocast():
        loss = loss_function(model(x), labels)
        scaler.scale(loss).backward()
    if scaler.unscale_(model.parameters()):
        optimizer.step()

Gradients are often smaller than 6e-8, the smallest number above 0 of float16. So the loss is
multiplied by a scale, and with it all gradients; where one overflows, the step is left out and the
scale halved. Master weights, sums, normalisation, losses and steps stay float32.

On a GPU cuBLAS multiplies float16 operands on tensor cores, into float32. Elsewhere they are
rounded to float16 and multiplied as float32: the same numbers but for the order of the sums, and no
faster. Arrays stay float32 in either case: no memory is saved.

Source: Micikevicius et al., "Mixed precision training" (2018), sections 3.1 to 3.3.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from kernels import dispatch
from minidl.array_module import get_array_module
from minidl.ops.rounding import mode
from minidl.tensor import Tensor


class autocast(AbstractContextManager):
    """Context manager: products of float32 tensors round their operands to float16.

    These are conv2d, conv_transpose2d, linear and matmul. Their backward rounds, too, wherever it
    runs, but uses a GPU's tensor cores inside the block alone. Raises ValueError for another dtype
    than "float16": NumPy has no bfloat16.
    """

    def __init__(self, dtype: str = "float16"):
        if dtype == "bfloat16":
            raise ValueError("dtype bfloat16 does not exist in NumPy: use float16")
        if dtype != "float16":
            raise ValueError(f"dtype must be 'float16', got {dtype!r}")

    def __enter__(self):
        self._previous, mode.active = mode.active, True
        self._precision = dispatch.precision("float16")
        return self

    def __exit__(self, *exc):
        self._precision.__exit__()
        mode.active = self._previous


class GradScaler:
    """Keeps the scale of the loss as large as the gradients allow.

    `scale`: at the start, a power of 2 by custom. It is halved after a step with a gradient that is
    not finite, and doubled after `growth_interval` steps without. Raises ValueError for a setting
    that is not above 0.
    """

    def __init__(self, scale: float = 2.0**16, growth_interval: int = 2000):
        for name, value in (("scale", scale), ("growth_interval", growth_interval)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.factor = float(scale)
        self.growth_interval = growth_interval
        self.good_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale, to call `backward` on."""
        return loss * self.factor

    def unscale_(self, parameters, agree: Callable[[bool], bool] = bool) -> bool:
        """Divide the gradients by the scale, and adapt the scale. False where they are not finite:
        then they are forgotten, and no step should be taken.

        `agree` makes one verdict of those of several ranks, which would go apart otherwise.
        """
        with_grad = [p for p in parameters if p.grad is not None]
        finite = True  # on the device, which is asked once for all
        for p in with_grad:
            with p.grad.mutate() as gradient:
                gradient *= 1 / self.factor
                finite = get_array_module(gradient).isfinite(gradient).all() & finite
        if agree(bool(finite)):
            self.good_steps += 1
            if self.good_steps == self.growth_interval:
                self.factor, self.good_steps = self.factor * 2, 0
            return True
        for p in with_grad:
            p.zero_grad()
        self.factor, self.good_steps = self.factor / 2, 0
        return False

    def state_dict(self) -> dict:
        """The scale and the steps since it last changed, fit for JSON."""
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.factor, self.good_steps = state["factor"], state["good_steps"]

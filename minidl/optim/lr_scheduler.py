"""Learning-rate schedules: each sets the rate of every group as a factor of its initial rate."""

import bisect
import math


class Schedule:
    """Base of the schedules in closed form: ``factor(t)`` after t calls of `step`."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.base_rates = [group["lr"] for group in optimizer.groups]
        self.steps = 0
        self.apply()

    def rate(self, base: float, t: int) -> float:
        """The learning rate at time t of a group that started with `base`."""
        raise NotImplementedError(f"{type(self).__name__}.rate is not defined")

    def apply(self) -> None:
        for group, base in zip(self.optimizer.groups, self.base_rates, strict=True):
            group["lr"] = self.rate(base, self.steps)

    def step(self) -> None:
        """Advance by one unit (batch or epoch, as the caller counts) and set the rates."""
        self.steps += 1
        self.apply()

    @property
    def last_lr(self) -> list[float]:
        """The current rate of every group."""
        return [group["lr"] for group in self.optimizer.groups]

    def state_dict(self) -> dict:
        """The place in the schedule, fit for JSON."""
        return {"steps": self.steps, "base_rates": self.base_rates}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.steps = state["steps"]
        self.base_rates = list(state["base_rates"])
        self.apply()


class StepLR(Schedule):
    """Multiply by `gamma` every `step_size` steps."""

    def __init__(self, optimizer, step_size: int, gamma: float = 0.1):
        if step_size < 1:
            raise ValueError(f"step_size must be at least 1, got {step_size}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base, t):
        return base * self.gamma ** (t // self.step_size)


class MultiStepLR(Schedule):
    """Multiply by `gamma` at each of the `milestones`, increasing step counts."""

    def __init__(self, optimizer, milestones, gamma: float = 0.1):
        self.milestones = list(milestones)
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"milestones must increase, got {self.milestones}")
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base, t):
        return base * self.gamma ** bisect.bisect_right(self.milestones, t)


class CosineAnnealingLR(Schedule):
    """Half a cosine from the initial rate to `eta_min` at step T_max, where it stays.

    Loshchilov and Hutter 2017, equation 5, without restarts.
    """

    def __init__(self, optimizer, T_max: int, eta_min: float = 0.0):
        if T_max < 1:
            raise ValueError(f"T_max must be at least 1, got {T_max}")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer)

    def rate(self, base, t):
        progress = min(t, self.T_max) / self.T_max
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * progress)) / 2


class LinearWarmup(Schedule):
    """Rise from 1 / warmup_steps of the rate to the whole, then follow the schedule `after`.

    Goyal et al. 2017, section 2.2. `after` must be a closed-form schedule of the same optimiser; it
    starts counting when the warm-up ends.
    """

    def __init__(self, optimizer, warmup_steps: int, after: Schedule | None = None):
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1, got {warmup_steps}")
        self.warmup_steps = warmup_steps
        self.after = after
        super().__init__(optimizer)
        if after is not None:
            self.base_rates = after.base_rates
            self.apply()

    def rate(self, base, t):
        if t < self.warmup_steps:
            return base * (t + 1) / self.warmup_steps
        return base if self.after is None else self.after.rate(base, t - self.warmup_steps)


class ReduceLROnPlateau:
    """Multiply the rate by `factor` when the metric has not improved for `patience` + 1 steps.

    An improvement changes the best value by more than the fraction `threshold` of it. Raises
    ValueError for a mode other than "min" and "max" or a factor outside (0, 1).
    """

    def __init__(
        self, optimizer, mode="min", factor=0.1, patience=10, threshold=1e-4, min_lr=0.0
    ):
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if not 0 < factor < 1:
            raise ValueError(f"factor must be in (0, 1), got {factor}")
        self.optimizer = optimizer
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.min_lr = min_lr
        self.best = None
        self.bad_steps = 0

    def step(self, metric: float) -> None:
        """Note the metric's new value and lower the rates if it has stalled."""
        if self._improves(metric):
            self.best, self.bad_steps = metric, 0
            return
        self.bad_steps += 1
        if self.bad_steps > self.patience:
            self.bad_steps = 0
            for group in self.optimizer.groups:
                group["lr"] = max(group["lr"] * self.factor, self.min_lr)

    def _improves(self, metric):
        if self.best is None:
            return metric == metric  # nothing would ever be better than NaN
        if self.mode == "min":
            return metric < self.best * (1 - self.threshold)
        return metric > self.best * (1 + self.threshold)

    @property
    def last_lr(self) -> list[float]:
        """The current rate of every group."""
        return [group["lr"] for group in self.optimizer.groups]

    def state_dict(self) -> dict:
        """The best value, the patience used up and the rates, fit for JSON."""
        return {"best": self.best, "bad_steps": self.bad_steps, "rates": self.last_lr}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.best, self.bad_steps = state["best"], state["bad_steps"]
        for group, rate in zip(self.optimizer.groups, state["rates"], strict=True):
            group["lr"] = rate

"""What all optimisers share: parameter groups, their settings, and their state."""

from minidl.array_module import to_device
from minidl.function import check_one_device
from minidl.tensor import Tensor, _mode


def not_negative(name: str, value: float) -> float:
    """`value`, or ValueError naming the argument if it is negative or no number."""
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return value


def check_betas(betas) -> tuple[float, float]:
    """The pair `betas`, or ValueError unless both are in [0, 1)."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
    return tuple(betas)


def _several(params) -> list:
    # A tensor can be iterated, too: over views of it, which no step would reach.
    if isinstance(params, Tensor):
        raise TypeError("params must be several tensors or groups, got a Tensor: put it in a list")
    return list(params)


class Optimizer:
    """Updates parameters in place from their gradients.

    `params`: tensors, or dicts {"params": tensors, setting: value, ...}, each a group with settings
    of its own. Raises ValueError for no parameters, one given twice, one that is the result of an
    operation, or an unknown setting; TypeError for non-tensors.
    """

    def __init__(self, params, **defaults):
        params = _several(params)
        if not params:
            raise ValueError("params must hold at least one parameter, got none")
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        self.groups = []
        for group in groups:
            if unknown := group.keys() - defaults.keys() - {"params"}:
                raise ValueError(
                    f"a group's settings must be among {sorted(defaults)}, got {sorted(unknown)}"
                )
            self.groups.append({**defaults, **group, "params": _several(group["params"])})
        self.parameters = [p for group in self.groups for p in group["params"]]
        for i, p in enumerate(self.parameters):
            if not isinstance(p, Tensor):
                raise TypeError(f"params[{i}] must be a Tensor, got {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError(f"params[{i}] must be no result of an operation, got {p!r}")
        if len({id(p) for p in self.parameters}) != len(self.parameters):
            raise ValueError("params must not hold a parameter twice")
        for group in self.groups:
            self.check(group)
        self.state = {}

    def check(self, group: dict) -> None:
        """Raise ValueError for a setting out of range."""
        not_negative("lr", group["lr"])
        not_negative("weight_decay", group["weight_decay"])

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        if _mode.profiler is not None:
            return _mode.profiler.optimizer(self)
        for group in self.groups:
            devices = {}
            for p in group["params"]:
                if p.grad is not None:
                    parameter = self._parameter(p)
                    devices.setdefault(type(parameter[0]), []).append(parameter)
            for parameters in devices.values():
                self.update(parameters, group)

    def _parameter(self, p):
        """(values, gradient, state) of a parameter that is about to be updated."""
        values, gradient = p._array, p.grad._array
        if gradient.dtype != values.dtype:
            raise TypeError(
                f"the gradient of a {p.dtype} parameter must be {p.dtype}, got {gradient.dtype}"
            )
        check_one_device(type(self).__name__, (values, gradient))
        state = self.state.setdefault(id(p), {})
        for name, value in state.items():
            if type(value) not in (int, type(values)):  # a module that moved left it behind
                state[name] = to_device(value, p.device)
        p._storage.version += 1
        return values, gradient, state

    def update(self, parameters, group: dict) -> None:
        """Change the values of parameters in place, all on one device.

        `parameters`: (values, gradient, state) of each; gradients are only read.
        """
        raise NotImplementedError(f"{type(self).__name__}.update is not defined")

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters:
            p.zero_grad()

    def state_dict(self) -> dict:
        """{"groups": the groups' settings, "state": {parameter's index: its arrays and counts}}."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.groups]
        state = {
            i: {
                k: v if isinstance(v, int) else to_device(v, "cpu").copy()
                for k, v in self.state[id(p)].items()
            }
            for i, p in enumerate(self.parameters)
            if id(p) in self.state
        }
        return {"groups": groups, "state": state}

    def load_state_dict(self, saved: dict) -> None:
        """Restore what `state_dict` returned. ValueError unless it fits these parameters."""
        if len(saved["groups"]) != len(self.groups):
            raise ValueError(
                f"saved state has {len(saved['groups'])} groups, expected {len(self.groups)}"
            )
        for group, settings in zip(self.groups, saved["groups"], strict=True):
            expected = group.keys() - {"params"}
            if settings.keys() != expected:
                raise ValueError(
                    f"saved group has the settings {sorted(settings)}, expected {sorted(expected)}"
                )
            self.check(settings)
        state = {}
        for index, entry in saved["state"].items():
            if not 0 <= int(index) < len(self.parameters):
                raise ValueError(
                    f"saved state has parameter {index}, expected below {len(self.parameters)}"
                )
            p = self.parameters[int(index)]
            for name, value in entry.items():
                if not isinstance(value, int) and value.shape != p.shape:
                    raise ValueError(
                        f"saved {name} of parameter {index} has shape {value.shape}, "
                        f"expected {p.shape}"
                    )
            state[id(p)] = {
                k: v if isinstance(v, int) else to_device(v.astype(p.dtype), p.device)
                for k, v in entry.items()
            }
        for group, settings in zip(self.groups, saved["groups"], strict=True):
            group.update(settings)
        self.state = state

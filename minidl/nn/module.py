"""Module: a tree of layers that owns parameters and buffers."""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from minidl.array_module import is_array, to_device
from minidl.tensor import Tensor, _mode


class RemovableHook:
    """Handle of a registered hook; `remove()` or leaving a ``with`` block takes the hook away."""

    def __init__(self, hooks: dict, hook):
        self._hooks = hooks
        self._hooks[self] = hook

    def remove(self) -> None:
        self._hooks.pop(self, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


class Parameter(Tensor):
    """A tensor that a Module trains: it requires grad, and assigning it registers it."""

    __slots__ = ("_gradient_hooks",)

    def __init__(self, data, requires_grad: bool = True):
        super().__init__(data, requires_grad=requires_grad)

    def register_post_accumulate_grad_hook(self, hook) -> RemovableHook:
        """Call ``hook(parameter)`` once in every `backward`, as soon as its `grad` is complete.

        That is when all operations that use the parameter have passed their gradients back, which
        for the last layers is long before backward ends. Not called where no gradient arrives.
        """
        if not hasattr(self, "_gradient_hooks"):
            self._gradient_hooks = {}
        return RemovableHook(self._gradient_hooks, hook)


class Module:
    """Base of all layers and networks: define ``forward(*inputs)``, then call the module.

    Parameters and Modules assigned as attributes are registered under the attribute's name;
    `register_buffer` registers state that is saved but not trained. ``training`` tells dropout
    and batch-norm which of their two behaviours to show.
    """

    training = True

    def __init__(self):
        # Straight into the instance's dictionary: __setattr__ below looks these up.
        self.__dict__.update(
            _parameters={}, _buffers={}, _modules={}, _pre_hooks={}, _hooks={}, training=True
        )

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__}.forward is not defined")

    def __call__(self, *inputs):
        if _mode.profiler is not None:
            return _mode.profiler.module(self, inputs)
        return self._call(*inputs)

    def _call(self, *inputs):
        for hook in tuple(self._pre_hooks.values()):
            replaced = hook(self, inputs)
            if replaced is not None:
                inputs = replaced if isinstance(replaced, tuple) else (replaced,)
        outputs = self.forward(*inputs)
        for hook in tuple(self._hooks.values()):
            _show(outputs)
            replaced = hook(self, inputs, outputs)
            if replaced is not None:
                outputs = replaced
        return outputs

    # -- registration ----------------------------------------------------------------------------

    def __setattr__(self, name, value):
        tables = self.__dict__
        if "_parameters" not in tables:
            raise AttributeError(
                f"{type(self).__name__}.__init__ must call super().__init__() before it assigns "
                f"{name!r}"
            )
        if isinstance(value, Parameter):
            table = self._parameters
        elif isinstance(value, Module):
            table = self._modules
        elif name in self._parameters and value is not None:
            kind = type(value).__name__
            raise TypeError(f"{name} is a parameter: it must stay a Parameter, got {kind}")
        elif name in self._buffers and isinstance(value, Tensor):
            table = self._buffers
        else:
            table = tables
        for other in (self._parameters, self._buffers, self._modules, tables):
            if other is not table:
                other.pop(name, None)
        table[name] = value

    def __getattr__(self, name):
        for table in ("_parameters", "_buffers", "_modules"):
            registered = self.__dict__.get(table, {})
            if name in registered:
                return registered[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __delattr__(self, name):
        for table in (self._parameters, self._buffers, self._modules):
            if name in table:
                del table[name]
                return
        super().__delattr__(name)

    def register_buffer(self, name: str, tensor: Tensor) -> None:
        """Register a tensor that `state_dict` saves and `to` moves, but nothing trains."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"buffer {name!r} must be a Tensor, got {type(tensor).__name__}")
        self._buffers[name] = tensor

    def register_forward_hook(self, hook) -> RemovableHook:
        """Call ``hook(module, inputs, outputs)`` after forward; a result replaces the outputs."""
        return RemovableHook(self._hooks, hook)

    def register_forward_pre_hook(self, hook) -> RemovableHook:
        """Call ``hook(module, inputs)`` before forward; a result replaces the inputs."""
        return RemovableHook(self._pre_hooks, hook)

    @property
    def has_hooks(self) -> bool:
        """Whether somebody wants to see this very module being called."""
        return bool(self._hooks or self._pre_hooks)

    # -- the tree --------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """(name, module) of the direct submodules."""
        yield from self._modules.items()

    def children(self) -> Iterator["Module"]:
        """The direct submodules."""
        yield from self._modules.values()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(dotted name, module) of the whole tree, this module first, each module once."""
        seen = set()
        for name, module in self._walk(prefix):
            if module not in seen:
                seen.add(module)
                yield name, module

    def modules(self) -> Iterator["Module"]:
        """All modules of the tree, each once."""
        for _, module in self.named_modules():
            yield module

    def _walk(self, prefix):
        yield prefix, self
        for name, child in self._modules.items():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def _named(self, table, once):
        seen = set()
        for prefix, module in self.named_modules() if once else self._walk(""):
            for name, tensor in module.__dict__[table].items():
                if not (once and tensor in seen):
                    seen.add(tensor)
                    yield (f"{prefix}.{name}" if prefix else name), tensor

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), a shared parameter once."""
        yield from self._named("_parameters", once=True)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, a shared one once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, buffer), a shared buffer once."""
        yield from self._named("_buffers", once=True)

    def buffers(self) -> Iterator[Tensor]:
        """All buffers."""
        for _, buffer in self.named_buffers():
            yield buffer

    # -- state -----------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        """All parameters and buffers; a shared tensor under every one of its names."""
        return {**dict(self._named("_parameters", False)), **dict(self._named("_buffers", False))}

    def state_dict(self) -> dict[str, np.ndarray]:
        """The values of all parameters and buffers by dotted name: NumPy arrays, read-only.

        On the CPU they are views of the live values: copy what must not change with training.
        """
        return {name: _read_only(to_device(t._array, "cpu")) for name, t in self._state().items()}

    def load_state_dict(self, state, strict: bool = True) -> None:
        """Overwrite parameters and buffers in place with the arrays or tensors of `state`.

        Raises ValueError listing every missing and unexpected key (unless not `strict`) and every
        shape or kind of value that does not fit; then nothing has been changed.
        """
        own = self._state()
        problems = []
        if strict:
            problems += [f"missing {name}" for name in own if name not in state]
            problems += [f"unexpected {name}" for name in state if name not in own]
        values = {}
        for name in own.keys() & state.keys():
            value = state[name]
            value = value._array if isinstance(value, Tensor) else value
            value = values[name] = value if is_array(value) else np.asarray(value)
            if value.shape != own[name].shape:
                problems.append(f"{name} has shape {value.shape}, expected {own[name].shape}")
            elif value.dtype.kind not in "fiub":
                problems.append(f"{name} has dtype {value.dtype}, expected numbers")
        if problems:
            raise ValueError(
                f"state does not fit {type(self).__name__}: " + "; ".join(sorted(problems))
            )
        for name, value in values.items():
            own[name].copy_(value)

    def train(self, mode: bool = True) -> "Module":
        """Set the whole tree to training (or evaluation) behaviour; returns the module."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> "Module":
        """Set the whole tree to evaluation behaviour; returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def apply(self, function) -> "Module":
        """Call ``function(module)`` on every module of the tree, children first."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``: where its parameters and buffers are (without any, "cpu")."""
        for tensor in chain(self.parameters(), self.buffers()):
            return tensor.device
        return "cpu"

    def to(self, target) -> "Module":
        """Move to a device ("cpu", "cuda") or cast floating state to a dtype, in place.

        Parameters stay the same objects, so that an optimiser keeps them; gradients are dropped.
        """
        if target not in ("cpu", "cuda"):
            target = np.dtype(target)
            if target.kind != "f":
                raise TypeError(f"target must be a device or a floating dtype, got {target}")
        for tensor in {id(t): t for t in self._state().values()}.values():
            if target in ("cpu", "cuda"):
                tensor.data = to_device(tensor._array, target)
            elif tensor.dtype.kind == "f":
                tensor.data = tensor._array.astype(target)
            tensor.zero_grad()
        return self

    # -- text ------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The settings shown in the module's repr."""
        return ""

    def __repr__(self) -> str:
        if not self._modules:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [f"{type(self).__name__}({self.extra_repr()}"]
        for name, child in self._modules.items():
            lines += [f"  ({name}): " + repr(child).replace("\n", "\n  ")]
        return "\n".join([*lines, ")"])


def _read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view


def _show(outputs):
    """What a hook has seen it may keep: handing out the arrays saves them from being written on."""
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        if isinstance(output, Tensor):
            output._storage.expose(output._array)

"""Modules that hold other modules."""

from minidl.nn import fusion
from minidl.nn.module import Module


class ModuleList(Module):
    """A list of modules, registered as "0", "1", ...; it has no forward of its own."""

    def __init__(self, modules=()):
        super().__init__()
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> "ModuleList":
        """Add a module at the end. Raises TypeError for anything else."""
        if not isinstance(module, Module):
            raise TypeError(f"module must be a Module, got {type(module).__name__}")
        self._modules[str(len(self._modules))] = module
        return self

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self):
        return iter(self._modules.values())

    def __getitem__(self, index):
        modules = list(self._modules.values())[index]
        return type(self)(modules) if isinstance(index, slice) else modules


class Sequential(ModuleList):
    """Modules applied one after the other: ``Sequential(a, b)`` or ``Sequential({"name": a})``.

    In inference a convolution, batch normalisation and ReLU in a row are one pass: see
    `minidl.nn.fusion`.

    Raises TypeError for anything that is not a Module.
    """

    def __init__(self, *modules):
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, module in modules[0].items():
                if not isinstance(module, Module):
                    raise TypeError(f"{name} must be a Module, got {type(module).__name__}")
                self._modules[name] = module
        else:
            for module in modules:
                self.append(module)

    def __getitem__(self, index):
        items = list(self._modules.items())[index]
        return Sequential(dict(items)) if isinstance(index, slice) else items[1]

    def forward(self, x):
        return fusion.run(self._modules.values(), x)

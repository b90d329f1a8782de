"""Which compiled functions a call of a CPU kernel runs, and their assembly."""

import pkgutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from numba import njit, typeof
from numba.core.registry import CPUDispatcher

from kernels import cpu


@dataclass(frozen=True)
class Compiled:
    """A compiled function of kernels.cpu that Python called with arguments of these types, and the
    seconds that passed in it."""

    dispatcher: CPUDispatcher
    types: tuple
    seconds: float

    @property
    def name(self) -> str:
        function = self.dispatcher.py_func
        return f"{function.__module__}.{function.__name__}"

    def assembly(self) -> str:
        """Its machine code and that of what it calls, as text.

        It is compiled anew, for code that comes from Numba's cache cannot be shown.
        """
        options = {k: v for k, v in self.dispatcher.targetoptions.items() if k != "nopython"}
        fresh = njit(**options)(self.dispatcher.py_func)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fresh.compile(self.types)
        return fresh.inspect_asm(fresh.signatures[0])


def traced(call: Callable[[], object]) -> list[Compiled]:
    """The compiled functions that Python calls in the course of ``call()``, each once, those that
    take the most time first."""
    call()  # what is compiled from here on would see the recorders as globals
    seconds, originals = Counter(), []

    def record(dispatcher):
        def recorder(*arguments):
            types = tuple(typeof(argument) for argument in arguments)
            start = time.perf_counter()
            result = dispatcher(*arguments)
            seconds[dispatcher, types] += time.perf_counter() - start
            return result

        return recorder

    for info in pkgutil.iter_modules(cpu.__path__, "kernels.cpu."):
        module = import_module(info.name)
        for name, value in vars(module).items():
            if isinstance(value, CPUDispatcher):
                originals.append((module, name, value))
    try:
        for module, name, dispatcher in originals:
            setattr(module, name, record(dispatcher))
        call()
    finally:
        for module, name, dispatcher in originals:
            setattr(module, name, dispatcher)
    return [Compiled(*function, spent) for function, spent in seconds.most_common()]

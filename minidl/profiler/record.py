"""The profile: it runs the operations of its thread, and notes down what each took."""

from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from minidl.array_module import synchronize
from minidl.profiler import report, trace
from minidl.profiler.memory import Memory
from minidl.tensor import Tensor, _mode


@dataclass(slots=True)
class Event:
    """One thing that ran.

    `phase`: "forward", "backward" or "optimiser" of an operation; "span" for the call of a module
    or a whole walk back, which contain operations. `module`: dotted name in the outermost module
    that was called. `start`, `duration`: nanoseconds. `parent`: name of the operation whose
    backward called this one; its figures contain this one's. `allocated`: bytes of the arrays it
    made and returned; `saved`: bytes that it was the first to keep for backward; `live` and `kept`:
    how much of both there was afterwards. `origin`: index of the forward that a backward belongs
    to, None where that was not profiled.
    """

    name: str
    phase: str
    module: str
    shapes: tuple[tuple[int, ...], ...]
    start: int
    duration: int
    parent: str = ""
    allocated: int = 0
    saved: int = 0
    live: int = 0
    kept: int = 0
    origin: int | None = None


class profile:
    """Context manager that records every operation of its thread, forward and backward.

    ``events`` lists them in the order of their ends, `seconds` is how long the block took,
    `peak_bytes` the most memory that the arrays made by operations took at once, `peak_saved_bytes`
    the same of what was kept for backward. Both hold for the block: parameters, optimisers' state,
    scratch memory of kernels and what was made before are not in them. The clock stands still while
    the profile keeps its books. On a GPU every operation is waited for.

    Raises RuntimeError where one is already running in this thread, or on a second use.
    """

    def __init__(self):
        self.events: list[Event] = []
        self.seconds = 0.0
        self._memory = Memory()
        self._begun = None
        self._lost = 0  # nanoseconds spent on the books
        self._walks = 0
        self._modules = []  # names of the modules that are being called
        self._operations = []  # (name, module) of the backwards that are running
        self._names = {}  # id of a module -> its dotted name
        self._roots = []  # outermost modules: holding them keeps the ids valid
        self._origins = {}  # id of a node -> index of its forward's event

    def __enter__(self) -> "profile":
        if _mode.profiler is not None:
            raise RuntimeError("a profile is already running in this thread: end it first")
        if self._begun is not None:
            raise RuntimeError("a profile can be used once: make another one")
        _mode.profiler = self
        self._begun = perf_counter_ns()
        return self

    def __exit__(self, *exc):
        self.seconds = self._now() / 1e9
        _mode.profiler = None
        self._names, self._roots, self._origins = {}, [], {}
        return False

    @property
    def peak_bytes(self) -> int:
        return self._memory.live_peak

    @property
    def peak_saved_bytes(self) -> int:
        return self._memory.saved_peak

    def rows(self, by: str = "op", sort: str = "time") -> list[report.Row]:
        """Sums over the operations; see `table`."""
        return report.rows(self.events, by, sort)

    def text(self, by: str = "op", sort: str = "time", limit: int | None = None) -> str:
        """What `table` prints."""
        return report.text(self, by, sort, limit)

    def table(self, by: str = "op", sort: str = "time", limit: int | None = None) -> None:
        """Print times, calls and bytes by "op", "module" (innermost) or "shape" (op and inputs).

        `sort`: "time", "forward", "backward", "calls", "allocated", "saved" or "name"; `limit`: the
        number of rows at most. Indented rows are operations that the backward of the row above
        called: its figures contain theirs. Raises ValueError for another `by`, `sort` or `limit`.
        """
        print(self.text(by, sort, limit))

    def chrome_trace(self, path) -> None:
        """Write all events as JSON that chrome://tracing and ui.perfetto.dev open (atomically)."""
        trace.write(path, self.events)

    def event_of(self, node) -> int | None:
        """Index of the event that made a live node, while the profile runs; None for others."""
        return self._origins.get(id(node))

    # -- called by the engine --------------------------------------------------------------------

    def forward(self, function, inputs):
        """Run an operation."""
        results, start, end = self._run(function, inputs)
        outputs = results if isinstance(results, tuple) else (results,)
        allocated, saved = self._memory.forward(function, inputs, outputs)
        parent, module = self._operations[-1] if self._operations else ("", self._module())
        if function.edges:
            self._origins[id(function)] = len(self.events)
        self._note(
            Event(
                type(function).__name__, "backward" if self._walks else "forward", module,
                tuple([np.shape(t) for t in inputs]), start, end - start, parent, allocated, saved,
            )
        )  # fmt: skip
        return results

    def backward(self, node, run, grads):
        """Run ``run(*grads)``, the backward of `node`."""
        name = type(node).__name__
        origin = self.event_of(node)
        parent = self._operations[-1][0] if self._operations else ""
        module = "" if origin is None else self.events[origin].module
        made, held = self._memory.made, self._memory.held
        self._operations.append((name, module))
        start = self._now()
        try:
            results = run(*grads)
            returned = results if isinstance(results, tuple) else (results,)
            for t in returned:
                if isinstance(t, Tensor):
                    synchronize(t._array)
        finally:
            self._operations.pop()
        end = self._now()
        self._memory.backward(node, grads, returned)
        self._note(
            Event(
                name, "backward", module, tuple([shape for shape, _ in node.input_meta]), start,
                end - start, parent, self._memory.made - made,
                self._memory.held - held, origin=origin,
            )
        )  # fmt: skip
        return results

    def released(self, node) -> None:
        """Take note that `node` freed its buffers."""
        self._memory.released(node)

    def optimizer(self, optimizer) -> None:
        """Run a step of an optimiser."""
        def step():
            optimizer.step()
            return optimizer.parameters[0]  # to wait for, on a GPU

        _, start, end = self._run(step, ())
        name = type(optimizer).__name__
        self._note(Event(name, "optimiser", "", (), start, end - start))

    def module(self, module, inputs):
        """Call a module; the operations within belong to it."""
        name = self._name(module)
        self._modules.append(name)
        try:
            with self._span(name, module=name):
                return module._call(*inputs)
        finally:
            self._modules.pop()

    @contextmanager
    def walk(self):
        """Within this, operations belong to a walk back through the graph."""
        self._walks += 1
        try:
            with self._span("backward"):
                yield
        finally:
            self._walks -= 1

    # -- the books -------------------------------------------------------------------------------

    def _now(self) -> int:
        return perf_counter_ns() - self._begun - self._lost

    def _run(self, call, arguments):
        """(what ``call(*arguments)`` returns, start, end), the profile being off meanwhile."""
        _mode.profiler = None
        start = self._now()
        try:
            results = call(*arguments)
            first = results[0] if isinstance(results, tuple) else results
            if first is not None:
                synchronize(first._array)
            return results, start, self._now()
        finally:
            _mode.profiler = self

    @contextmanager
    def _span(self, name, module=""):
        start = self._now()
        try:
            yield
        finally:
            self._note(Event(name, "span", module, (), start, self._now() - start))

    def _note(self, event):
        event.live, event.kept = self._memory.live, self._memory.saved
        self.events.append(event)
        self._lost = perf_counter_ns() - self._begun - (event.start + event.duration)

    def _module(self) -> str:
        return self._modules[-1] if self._modules else ""

    def _name(self, module) -> str:
        if id(module) not in self._names:
            self._enter_root(module)
        return self._names[id(module)]

    def _enter_root(self, root):
        """Name the tree below a module that no tree before contained."""
        kind = type(root).__name__
        same = sum(type(other) is type(root) for other in self._roots)
        own = f"{kind}-{same + 1}" if same else kind
        prefix = f"{own}." if self._roots else ""
        self._roots.append(root)
        for name, module in root.named_modules():
            self._names.setdefault(id(module), prefix + name if name else own)

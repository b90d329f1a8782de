"""Where time and memory go: ``with minidl.profile() as p: ...``, then ``p.table()``."""

from minidl.profiler.record import Event, profile

__all__ = ["Event", "profile"]

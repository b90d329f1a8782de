"""A profile in the Trace Event Format of Chrome, which chrome://tracing and Perfetto open.

Format: "Trace Event Format" (Google, 2016): complete events "X", counters "C", flows "s" and "f",
metadata "M"; times in microseconds.
"""

import json
import os
import threading

from minidl import files


def write(path, events) -> None:
    """Write `events` to `path` atomically."""
    content = {"traceEvents": trace_events(events), "displayTimeUnit": "ms"}
    files.write_text(path, json.dumps(content))


def trace_events(events) -> list[dict]:
    """The dictionaries of a trace: operations, modules, arrows from forward to backward, memory."""
    place = {"pid": os.getpid(), "tid": threading.get_native_id()}
    made = [
        {"ph": "M", "name": "process_name", "args": {"name": "minidl"}, **place},
        {"ph": "M", "name": "thread_name", "args": {"name": "operations"}, **place},
    ]
    for number, event in enumerate(events):
        start, end = event.start / 1e3, (event.start + event.duration) / 1e3
        made.append(
            {
                "ph": "X", "name": event.name, "cat": event.phase, "ts": start,
                "dur": event.duration / 1e3, "args": _arguments(event), **place,
            }
        )  # fmt: skip
        if event.phase == "span":
            continue
        if event.origin is not None:
            arrow = {"name": "forward to backward", "cat": "derivative", "id": number, **place}
            made.append({**arrow, "ph": "s", "ts": events[event.origin].start / 1e3})
            made.append({**arrow, "ph": "f", "bp": "e", "ts": start})
        counts = {"arrays": event.live, "kept for backward": event.kept}
        made.append({"ph": "C", "name": "bytes", "ts": end, "args": counts, **place})
    return made


def _arguments(event):
    if event.phase == "span":
        return {}
    return {
        "module": event.module,
        "inputs": [list(shape) for shape in event.shapes],
        "allocated": event.allocated,
        "saved": event.saved,
    }

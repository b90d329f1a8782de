"""What figures were taken on, and when."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "numba")


def describe(threads: int, packages=PACKAGES) -> dict:
    """The processor, its load, the date and the versions of `packages`, None of absent ones."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def sentence(about: dict, packages=PACKAGES) -> str:
    """What `describe` found, in one line."""
    versions = ", ".join(f"{name} {about[name]}" for name in packages if about[name])
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; load "
        f"{about['load']:.1f} at the end; Python {about['python']}, {versions}; {about['date']}"
    )


def _cpu_model():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Writing files so that a reader finds the old content or the new, never a part."""

from kernels.files import atomic_path, write_text

__all__ = ["atomic_path", "write_text"]

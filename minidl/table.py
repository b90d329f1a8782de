"""Text tables for the terminal."""

from kernels.table import format_bytes, format_table

__all__ = ["format_bytes", "format_table"]

"""Ladders: a kernel from its naive loops to the fastest version, one small change a rung."""

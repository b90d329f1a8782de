"""A place to study the kernels: what `python -m kernels` can show, one module a command."""

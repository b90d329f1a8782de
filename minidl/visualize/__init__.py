"""Pictures of training runs and of what networks see.

`curves` and `pictures` draw, and need matplotlib; the others return arrays.
"""

"""Gradients of functions of arrays by central differences."""

import numpy as np

STEP = 1e-6


def central_differences(f, x: np.ndarray, step: float = STEP) -> np.ndarray:
    """The gradient at x (float64) of f, which maps an array of x's shape to a number.

    (f(x + step e_i) - f(x - step e_i)) / (2 step) for every element i; exact to about step^2.
    """
    gradient = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        values = []
        for sign in (1, -1):
            shifted = x.copy()
            shifted[place] += sign * step
            values.append(f(shifted))
        gradient[place] = (values[0] - values[1]) / (2 * step)
    return gradient

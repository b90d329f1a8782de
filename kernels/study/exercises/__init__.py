"""Exercises: kernels of the reference to be written anew, and what checks them."""

from kernels.study.exercises import activation, conv, dropout, loss, norm, optim, pool, winograd
from kernels.study.exercises.model import Exercise

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for family in (activation, pool, conv, norm, dropout, loss, optim, winograd)
    for exercise in family.EXERCISES
}


def find(name: str) -> Exercise:
    """The exercise of this name. Raises ValueError, listing all, for another."""
    if name not in EXERCISES:
        raise ValueError(f"there is no exercise {name!r}, only {', '.join(EXERCISES)}")
    return EXERCISES[name]

"""``python -m kernels exercise NAME``: a kernel with its body missing, and the check of yours."""

from pathlib import Path

import click

from kernels.files import write_text
from kernels.study.exercises import EXERCISES, find
from kernels.study.exercises.check import CheckFailed
from kernels.study.exercises.run import check_file
from kernels.study.exercises.template import template


@click.command()
@click.argument("name", required=False)
@click.option("--list", "list_all", is_flag=True, help="List the exercises with their difficulty.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="The file to write.  [default: NAME_exercise.py]")
@click.option("--force", is_flag=True, help="Overwrite the file if there is one.")
@click.option("--check", "solution", metavar="FILE",
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Check the version in FILE instead of writing a file.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0,
              show_default=True, help="Seconds that a check may take.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Other numbers for the check.")
def command(name, list_all, out, force, solution, timeout, seed):
    """Write an exercise, a kernel with its body missing, or check your version of it.

    The file holds the reference's functions with signature, docstring and hints. A check compares
    yours with the reference on arrays of many shapes, and its gradients with central differences.
    """
    if list_all:
        for exercise in EXERCISES.values():
            click.echo(f"{exercise.name:18}{'*' * exercise.difficulty:5}{exercise.title}")
        return
    if name is None:
        raise click.UsageError("name an exercise, or give --list to see all of them")
    try:
        exercise = find(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if solution is not None and (out is not None or force):
        raise click.UsageError("--out and --force are for writing the exercise, not for --check")
    if solution is None:
        path = out or Path(f"{name}_exercise.py")
        _write(path, template(exercise, path), force)
        click.echo(f"wrote {path}; check it with: "
                   f"python -m kernels exercise {name} --check {path}")  # fmt: skip
        return
    try:
        summary = check_file(name, solution.resolve(), timeout, seed)
    except CheckFailed as failure:
        raise click.ClickException(f"not right yet\n{failure}") from None
    click.echo(f"right: {summary}")


def _write(path, text, force):
    """Write a new file, or in place of the old one with `force`, in one step."""
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists already: give --force to overwrite it")
    try:
        write_text(path, text)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None

"""`python -m kernels explain KERNEL`: what a kernel does, step by step, on a small input."""

from pathlib import Path

import click

from kernels.command_line import UserError, user_errors
from kernels.study import explanations


class Explanations(click.Group):
    """A command for every kernel that can be explained, loaded when it is called for."""

    def list_commands(self, ctx):
        return list(explanations.EXPLANATIONS)

    def get_command(self, ctx, name):
        found = explanations.of_kernel(name)
        return None if found is None else _command(found)

    def resolve_command(self, ctx, args):
        if args and explanations.of_kernel(args[0]) is None:
            known = ", ".join(explanations.EXPLANATIONS)
            raise UserError(f"no explanation of {args[0]!r}: there are {known}")
        return super().resolve_command(ctx, args)


def _command(name: str) -> click.Command:
    module = explanations.module(name)
    html = click.Option(
        ["--html"], type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="Write a page of pictures to step through, instead.",
    )  # fmt: skip

    def run(html, **options):
        with user_errors(ValueError):
            explanation = module.explain(**options)
        _write(explanation, html) if html else _print(explanation)

    summary = module.__doc__.split("\n\n")[0].replace("\n", " ")
    return click.Command(
        name, params=[*module.OPTIONS, html], callback=run, help=summary, short_help=summary
    )


def _print(explanation) -> None:
    from rich.console import Console

    from kernels.study.render_text import show

    show(explanation, Console())


def _write(explanation, path) -> None:
    from kernels.files import write_text
    from kernels.study.render_html import page

    with user_errors(OSError):
        write_text(path, page(explanation))
    click.echo(path)


command = Explanations(
    "explain", help="Show step by step what a kernel does, on an input small enough to follow."
)

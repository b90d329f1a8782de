"""What command lines have in common: one line for a mistake, and the exit statuses."""

from contextlib import contextmanager

import click

INTERRUPTED = 130  # the shell's status for a program that SIGINT ended


class UserError(click.ClickException):
    """A mistake of the user's, reported in one line with exit status 2."""

    exit_code = 2


@contextmanager
def user_errors(*kinds, prefix=""):
    """Turn exceptions of these kinds into one-line errors that start with `prefix`."""
    try:
        yield
    except kinds as error:
        raise UserError(prefix + " ".join(str(error).split())) from error


def run_group(group: click.Group, arguments: list[str], name: str) -> int:
    """Run a command and return its exit status; errors go to stderr in one line."""
    try:
        status = group.main(arguments, prog_name=name, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        message = error.format_message()
        # Where the command is missing, click 8.2 raises the help text that 8.1 prints.
        if message.startswith("Usage:"):
            click.echo(message, err=True)
            return 2
        # click lists the choices of a missing argument in lines of their own.
        usage = isinstance(error, click.UsageError)
        click.echo(f"Error: {' '.join(message.split()) if usage else message}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED

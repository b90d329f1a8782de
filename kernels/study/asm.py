"""``python -m kernels asm KERNEL``: the machine code of the hot loops, with its vectors counted."""

import platform

import click

from kernels import reference
from kernels.command_line import UserError, user_errors
from kernels.study import gpu_code, machine_code, ptx, sass
from kernels.study.cases import SPECS, make_case
from kernels.study.options import CASE, flag, given_options, with_options
from kernels.table import format_table

_X86 = ("x86_64", "AMD64")
_ARCH = "sm_80"


@click.command(help="The machine code of a kernel's hot loops, its vector instructions counted.")
@click.argument("kernel", type=click.Choice(tuple(SPECS)), metavar="KERNEL")
@with_options(*CASE)
@click.option(
    "--loops", "count", type=click.IntRange(min=1), default=3, show_default=True,
    help="Innermost loops shown of each function: first those that multiply and add most.",
)  # fmt: skip
@click.option("--full", is_flag=True, help="All of the assembly instead.")
@click.option("--cuda", is_flag=True, help="PTX of the CUDA kernel instead; needs no GPU.")
@click.option(
    "--sass", "as_sass", is_flag=True,
    help="SASS, what the GPU itself runs, instead; by nvdisasm, without it PTX.",
)  # fmt: skip
@click.option("--arch", help=f"GPU generation to compile for.  [default: {_ARCH}]")
def command(kernel, count, full, cuda, as_sass, arch, **given):
    options = given_options(kernel, given, SPECS[kernel].defaults)
    if cuda or as_sass:
        if options:
            name = flag(next(iter(options)))
            raise UserError(f"code for a GPU is the same for all shapes: it takes no {name}")
        if as_sass and sass.find_tool() is None:
            click.echo(f"SASS needs nvdisasm ({sass.INSTALL}); this is PTX.", err=True)
            as_sass = False
        _show_gpu_code(kernel, sass if as_sass else ptx, arch or _ARCH, count, full)
        return
    if arch:
        raise UserError("--arch is of use with --cuda or --sass alone")
    if platform.machine() not in _X86:
        raise UserError(f"asm reads x86-64 code, this machine is {platform.machine()}")
    with user_errors(ValueError, TypeError, MemoryError):
        case = make_case(kernel, **options)
    _show_code(case, count, full)


# -- x86-64 ----------------------------------------------------------------------------------------


def _show_code(case, count, full):
    from kernels import cpu
    from kernels.study.compiled import traced

    found = traced(lambda: case.call(cpu))
    if not found:
        raise UserError(f"{case.kernel} runs no compiled function here: NumPy does it for so few")
    total = sum(function.seconds for function in found)
    for function in found:
        assembly = function.assembly()
        share = f": {100 * function.seconds / total:.0f} % of the time" if len(found) > 1 else ""
        click.echo(f"== {function.name}{share}\n")
        if full:
            click.echo(assembly)
            continue
        everything = machine_code.functions(assembly)
        lines = [line for body in everything.values() for line in body]
        click.echo("\n".join(_counts(lines)) + "\n")
        loops = machine_code.loops(assembly)
        vectors = [loop for loop in loops if any(loop.rank)]
        if not vectors:
            click.echo("No loop of it uses vectors.\n")
        for loop in (vectors or loops)[:count]:
            click.echo("\n".join(_listing(loop)) + "\n")


def _counts(lines):
    """A table of the instructions of a function and of what it calls: kinds by widths."""
    counts = machine_code.count(lines)
    rows = [
        (kind, *(counts[kind, width] or "" for width in machine_code.WIDTHS))
        for kind in machine_code.KINDS
    ]
    return format_table(("instructions", *machine_code.WIDTHS), rows)


def _listing(loop):
    """The instructions of a loop, with what they do, under a line that sums them up."""
    products = sum(i.lanes for i in loop.body if i.kind == "multiply-add")
    sums = sum(i.lanes for i in loop.body if i.kind == "arithmetic")
    yield (
        f"{machine_code.readable(loop.function)}, loop {loop.label}: {len(loop.body)} instructions "
        f"a turn, with {products} multiply-adds and {sums} other float operations"
    )
    for instruction in loop.body:
        code = f"    {instruction.mnemonic:14} {', '.join(instruction.operands)}"
        comment = loop.comment(instruction)
        yield f"{code:60} ; {comment}" if comment else code


# -- PTX and SASS ----------------------------------------------------------------------------------


def _show_gpu_code(kernel, form, arch, count, full):
    """`form`: the module ptx or sass."""
    name = getattr(reference, kernel).__module__.rsplit(".", 1)[1]
    path = gpu_code.SOURCES / f"{name}.cu"
    if not path.exists():
        raise UserError(f"this version has no CUDA kernels of {kernel}: no kernels/cuda/{name}.cu")
    with user_errors(RuntimeError, ValueError):
        text = form.compile_source(path, arch)
    if full:
        click.echo(text)
        return
    entries, language = form.entries(text), form.LANGUAGE
    wanted = {kernel: entries[kernel]} if kernel in entries else entries
    click.echo(f"== kernels/cuda/{path.name} for {arch}\n")
    counts = {entry: language.count(lines) for entry, lines in wanted.items()}
    rows = [(kind, *(c[kind] or "" for c in counts.values())) for kind in language.kinds]
    click.echo("\n".join(format_table(("instructions", *counts), rows)) + "\n")
    loops = language.loops(wanted)[:count]
    for loop in loops:
        turn = language.count(loop.body).total()
        click.echo(f"{loop.function}, loop {loop.label}: {turn} instructions a turn")
        click.echo("\n".join(_gpu_listing(language, loop.body)) + "\n")
    if not loops:
        for entry, lines in wanted.items():
            click.echo(f"{entry} has no loop; all of it:")
            click.echo("\n".join(_gpu_listing(language, lines)) + "\n")


def _gpu_listing(language, lines):
    """The instructions, with their kinds."""
    for line in lines:
        what = language.kind(line)
        yield f"    {line:56} // {what}" if what != "other" else f"    {line}"

"""The file a reader fills in, made from the reference's source by its syntax tree."""

import ast
import textwrap

from kernels.study.exercises.model import Exercise
from kernels.study.source import kernel_file, lines


def reference_source(exercise: Exercise) -> str:
    """The source of the reference module that the exercise is taken from."""
    return kernel_file("reference", exercise.module).read_text(encoding="utf-8")


def template(exercise: Exercise, file_name: str) -> str:
    """The exercise as a Python file: the module's docstring, its imports, and its functions with
    signature, docstring and hints, whose bodies raise NotImplementedError."""
    text = reference_source(exercise)
    tree = ast.parse(text)
    docstring = tree.body[0]
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    *first, last = exercise.parts
    names = f"{', '.join(first)} and {last}" if first else last
    note = (
        f"Write the bod{'y' if len(exercise.parts) == 1 else 'ies'} of {names}. Arguments can be "
        "taken as valid: errors are not part of the exercise. Then"
    )
    blocks = [
        lines(text, docstring.lineno, docstring.end_lineno),
        *textwrap.wrap(note, 98, initial_indent="# ", subsequent_indent="# "),
        "#",
        f"#     python -m kernels exercise {exercise.name} --check {file_name}",
        "",
        *_imports(tree, exercise, functions),
    ]
    for name, part in exercise.parts.items():
        blocks += ["", "", _empty(text, functions[name], part.hints)]
    return "\n".join(blocks) + "\n"


def _imports(tree, exercise, functions):
    """The kernels' imports, without the checks of arguments, others as far as the reference's
    version of the functions reads them, and what the exercise gives."""
    read = {node.id for name in exercise.parts for node in ast.walk(functions[name])
            if isinstance(node, ast.Name)}  # fmt: skip
    plain, own = [], []
    for node in tree.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        ours = getattr(node, "module", "").startswith("kernels")
        node.names = [
            name for name in node.names
            if (not name.name.startswith("check_") if ours else (name.asname or name.name) in read)
        ]  # fmt: skip
        if node.names:
            (own if ours else plain).append(ast.unparse(node))
    if exercise.given:
        own.append(f"from kernels.reference.{exercise.module} import {', '.join(exercise.given)}")
    if "import numpy as np" not in plain:
        plain.append("import numpy as np")
    return [*plain, *([""] if own else []), *own]


def _empty(text, function, hints):
    docstring = function.body[0]
    body = [lines(text, function.lineno, docstring.end_lineno)]
    for hint in hints:
        body += textwrap.wrap(hint, 92, initial_indent="    # ", subsequent_indent="    #   ")
    return "\n".join([*body, "    raise NotImplementedError"])

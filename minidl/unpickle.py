"""Reading pickles that may come from anyone: only the callables that the caller lists can run."""

import pickle
from collections.abc import Mapping


class ForbiddenGlobal(ValueError):
    """A pickle asks for a function or class that is not on the list."""


class RestrictedUnpickler(pickle.Unpickler):
    """An Unpickler that resolves the globals in `allowed`, (module, name) -> object, and no others.

    A pickle is a program: it calls whatever it can name. Here it can name nothing but `allowed`, so
    that a hostile file ends with ForbiddenGlobal, a ValueError naming the global, before any of its
    code has run.
    """

    def __init__(self, file, allowed: Mapping[tuple[str, str], object], **options):
        super().__init__(file, **options)
        self._allowed = allowed

    def find_class(self, module, name):
        try:
            return self._allowed[module, name]
        except KeyError:
            raise ForbiddenGlobal(
                f"the pickle asks for {module}.{name}, which data has no use for"
            ) from None

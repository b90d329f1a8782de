"""The restricted unpickler builds what is listed and refuses the rest before it runs."""

import io
import os
import pickle
from collections import OrderedDict

import pytest

from minidl.unpickle import ForbiddenGlobal, RestrictedUnpickler


def load(data, allowed):
    return RestrictedUnpickler(io.BytesIO(data), allowed).load()


def test_plain_containers_need_no_globals():
    value = {"a": [1, 2.5, b"bytes", None], "b": ("x", True)}
    assert load(pickle.dumps(value), {}) == value


def test_listed_globals_are_resolved():
    value = OrderedDict(x=1)
    assert load(pickle.dumps(value), {("collections", "OrderedDict"): OrderedDict}) == value


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_before_it_runs(tmp_path, protocol):
    target = tmp_path / "made"
    data = pickle.dumps(Hostile(str(target)), protocol)
    with pytest.raises(ForbiddenGlobal, match="mkdir"):
        load(data, {("collections", "OrderedDict"): OrderedDict})
    assert not target.exists()

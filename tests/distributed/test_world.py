"""What needs no second rank: the threads of a rank, and bad settings."""

from types import SimpleNamespace

import pytest

from minidl import distributed
from minidl.distributed.world import World, _Place


@pytest.mark.parametrize(
    ("ranks", "own", "together", "threads"),
    [(1, 8, 8, 8), (4, 8, 8, 2), (3, 8, 8, 2), (4, 2, 2, 1), (4, 4, 16, 4), (2, 1, 2, 1)],
)
def test_threads(ranks, own, together, threads):
    """Cores are divided among the ranks, unless the launcher has bound each to its own already."""
    world = SimpleNamespace(_place=_Place(0, ranks, own, together))
    assert World.threads(world) == threads


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_bad_timeouts(timeout):
    with pytest.raises(ValueError, match="timeout must be above 0"):
        distributed.join(timeout)

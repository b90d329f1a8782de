"""Other settings of how products on tensor cores are cut into blocks."""

from contextlib import ExitStack, contextmanager
from unittest import mock

from kernels.cuda import conv_tf32, tiles_tf32


@contextmanager
def cut_by(**settings):
    """Within, constants of the launchers have other values."""
    with ExitStack() as stack:
        tiles_tf32.choose_cut.cache_clear()
        stack.callback(tiles_tf32.choose_cut.cache_clear)
        for module in (conv_tf32, tiles_tf32):
            for name, value in settings.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield


def cut_into(shape):
    """Within, blocks have this shape wherever there is a kernel of it: nothing is as fast."""
    fast = tiles_tf32.SHAPES[shape]._replace(rates=(1e6,))
    return cut_by(SHAPES={**tiles_tf32.SHAPES, shape: fast})

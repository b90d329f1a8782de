"""max_pool2d: the largest of each window, and the switch that remembers where it stood."""

import numpy as np

from kernels.reference import max_pool2d, max_unpool2d
from kernels.study.explanations import build, options, pooling
from kernels.study.explanations.model import Explanation, Frame, Step

OPTIONS = (*pooling.OPTIONS, options.DILATION)


def explain(size, kernel, stride, padding, ceil_mode, dilation) -> Explanation:
    """The steps of a max-pool of one plane of digits, and of its gradient."""
    pool = pooling.Pool.of(size, kernel, stride, padding, ceil_mode, dilation)
    x = pool.example(pool.shape)
    steps = pool.sizes_step(x), _switches(pool, x), _backward(pool, x)
    return Explanation(
        "max_pool2d", "max_pool2d: the largest wins, and its place is kept", pool.shown, steps
    )


def _run(pool, x):
    return max_pool2d(
        x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    )


def _switches(pool, x) -> Step:
    y, switches = _run(pool, x)
    dependence = build.reads(lambda plane: _run(pool, plane)[0], x)

    def frame(output):
        real = np.flatnonzero(dependence[output])
        best, switch = y.reshape(-1)[output], int(switches.reshape(-1)[output])
        ties = int(np.sum(x.reshape(-1)[real] == best))
        taps = int(np.prod(pool.kernel_size))
        outside = f", {taps - len(real)} outside" if taps > len(real) else ""
        tie = f"; {ties} are equal, the first in reading order wins" if ties > 1 else ""
        at = divmod(switch, pool.plane[1])
        return Frame(
            f"{pool.window(output)}: {build.counted(len(real), 'real tap')}{outside}; the "
            f"largest is {build.number(best)} at {at}, switch {switch}{tie}",
            pool.taps(output),
            {
                **build.places([switch], pool.pixel()),
                **build.places([output], pool.output()),
                **build.places([output], pool.output("switches")),
            },
        )

    h, w = pool.plane
    return Step(
        "The winners and their switches",
        (
            "y holds the largest real tap of every window, padding is never chosen; switches holds "
            f"its flat index r·{w} + c in the plane {h}x{w}. Switches are all that backward needs: "
            "x itself is not kept.",
        ),
        (
            pool.x_grid(x),
            pool.y_grid(y, "y", "y"),
            pool.y_grid(switches, "switches", "switches", "matrix"),
        ),
        build.link(dependence, pool.output(), pool.pixel()),
        tuple(frame(output) for output in range(y.size)),
    )


def _backward(pool, x) -> Step:
    y, switches = _run(pool, x)
    dy = np.arange(1.0, y.size + 1).reshape(y.shape)
    dx = max_unpool2d(dy, switches, pool.plane)
    often = max_unpool2d(np.ones_like(dy), switches, pool.plane)
    dependence = build.reads(lambda g: max_unpool2d(g, switches, pool.plane), dy)

    def frame(output):
        (pixel,) = np.flatnonzero(dependence[:, output])
        at = divmod(int(pixel), pool.plane[1])
        wins = build.counted(int(often.reshape(-1)[pixel]), "window")
        return Frame(
            f"dy at {divmod(output, pool.size[1])} = {build.number(dy.reshape(-1)[output])} goes "
            f"to its switch {pixel}, at {at}, which has won {wins} and receives "
            f"{build.number(dx.reshape(-1)[pixel])} in all",
            {
                **build.places([output], pool.output("dy")),
                **build.places([output], pool.output("switches")),
            },
            {
                **build.places([pixel], pool.pixel("dx")),
                **build.places([pixel], pool.pixel("often")),
            },
        )

    return Step(
        "Backward: only winners receive",
        (
            "Each gradient is added at its window's switch, the others get nothing: "
            "dx[switches] += dy. Where windows overlap, one pixel can win several. The same "
            "scatter, applied to activations, is the unpooling of Zeiler and Fergus.",
            f"Of {x.size} pixels {int(np.count_nonzero(often))} have won a window.",
        ),
        (
            pool.y_grid(dy, "dy", "dy", "gradient"),
            pool.y_grid(switches, "switches", "switches", "matrix"),
            pool.x_grid(dx, "dx", "dx", "gradient"),
            pool.x_grid(often, "windows won", "often", "gradient", build.heat(often)),
        ),
        build.link(dependence, pool.pixel("dx"), pool.output("dy")),
        tuple(frame(output) for output in range(dy.size)),
    )

"""avg_pool2d: the mean of each window, and what it is divided by at the edges."""

import numpy as np

from kernels.reference import avg_pool2d, avg_pool2d_backward
from kernels.reference.pool import window_counts
from kernels.study.explanations import build, options, pooling
from kernels.study.explanations.model import Explanation, Frame, Step

OPTIONS = (
    *pooling.OPTIONS,
    options.flag("--exclude-pad", "Divide by the real taps alone: count_include_pad=False."),
)


def explain(size, kernel, stride, padding, ceil_mode, exclude_pad) -> Explanation:
    """The steps of an avg-pool of one plane of digits, and of its gradient."""
    pool = pooling.Pool.of(size, kernel, stride, padding, ceil_mode)
    x = pool.example(pool.shape)
    include = not exclude_pad
    steps = pool.sizes_step(x), _means(pool, x, include), _backward(pool, include)
    shown = (*pool.shown, ("count_include_pad", "yes" if include else "no"))
    return Explanation("avg_pool2d", "avg_pool2d: the mean of each window", shown, steps)


def _settings(pool):
    return pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode


def _counts(pool, include):
    y_shape = (1, 1, *pool.size)
    settings = pool.kernel_size, pool.stride, pool.padding
    return np.outer(*window_counts(pool.shape, y_shape, *settings, include))[None, None]


def _means(pool, x, include) -> Step:
    y = avg_pool2d(x, *_settings(pool), include)
    counts = _counts(pool, include)
    dependence = build.reads(lambda plane: avg_pool2d(plane, *_settings(pool), include), x)

    def frame(output):
        real = np.flatnonzero(dependence[output])
        taken = x.reshape(-1)[real]
        return Frame(
            f"{pool.window(output)}: {build.counted(len(real), 'real tap')} with sum "
            f"{build.number(taken.sum())}, divided by "
            f"{build.number(counts.reshape(-1)[output])}, is {build.number(y.reshape(-1)[output])}",
            pool.taps(output),
            {
                **build.places([output], pool.output("counts")),
                **build.places([output], pool.output()),
            },
        )

    others = _counts(pool, not include)
    differ = int(np.sum(others != counts))
    rule = (
        "the taps in the padded image, padding included (count_include_pad)"
        if include
        else "the real taps alone (count_include_pad off)"
    )
    return Step(
        "Sums and counts",
        (
            f"y = sum of the real taps / count, where the count is {rule}. Under the other rule "
            f"{differ} of {counts.size} windows would have another count. What a window of "
            "ceil_mode reaches beyond the padding counts under neither.",
        ),
        (
            pool.x_grid(x),
            pool.y_grid(counts, "counts", "counts", "matrix"),
            pool.y_grid(others, "by the other rule", "others", "table"),
            pool.y_grid(y, "y", "y"),
        ),
        build.link(dependence, pool.output(), pool.pixel()),
        tuple(frame(output) for output in range(y.size)),
    )


def _backward(pool, include) -> Step:
    counts = _counts(pool, include)
    dy = np.ones((1, 1, *pool.size))

    def run(gradient):
        return avg_pool2d_backward(gradient, pool.shape, *_settings(pool), include)

    dx = run(dy)
    dependence = build.reads(run, dy)
    often = dependence.sum(axis=1).reshape(pool.shape)

    def frame(output):
        pixels = np.flatnonzero(dependence[:, output])
        return Frame(
            f"dy at {divmod(output, pool.size[1])}: 1 / "
            f"{build.number(counts.reshape(-1)[output])} to {build.counted(len(pixels), 'pixel')}",
            {
                **build.places(pixels, pool.pixel("dx")),
                **build.places(pixels, pool.pixel("often")),
            },
            build.places([output], pool.output("dy")),
        )

    return Step(
        "Backward: every tap gets its share",
        (
            "The gradient of a mean goes to all real taps alike: dy / count. What padding would "
            f"receive is lost: of {build.number(dy.sum())} in dy, {build.number(dx.sum())} arrive "
            "in dx.",
        ),
        (
            pool.y_grid(dy, "dy", "dy", "gradient"),
            pool.x_grid(dx, "dx", "dx", "gradient", build.heat(dx / dx.max(initial=1e-9))),
            pool.x_grid(often, "windows it is in", "often", "gradient", build.heat(often)),
        ),
        build.link(dependence, pool.pixel("dx"), pool.output("dy")),
        tuple(frame(output) for output in range(dy.size)),
    )

"""Matrix product: row times column, the same block by block, and what that saves in memory."""

from itertools import product

import numpy as np

from kernels.reference import matmul
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Step

OPTIONS = (
    options.count("--rows", 4, "M, the rows of a."),
    options.count("--inner", 6, "K, the columns of a and rows of b."),
    options.count("--columns", 4, "N, the columns of b."),
    options.count("--block", 2, "Height and width of a block."),
)


def explain(rows, inner, columns, block) -> Explanation:
    """The steps of a product a (M, K) times b (K, N), and of its gradient."""
    build.check_cells(the_cube_of_multiply_adds=rows * inner * columns)
    a = build.whole_numbers((rows, inner), 0, 5)
    b = build.weights((inner, columns))
    blocks = _blocks(a.shape, b.shape, block)
    steps = _entries(a, b), _by_blocks(a, b, blocks), _traffic(a, b, blocks), _backward(a, b)
    shown = ("a", str(a.shape)), ("b", str(b.shape)), ("block", str(block))
    return Explanation("matmul", "matmul: row times column, block by block", shown, steps)


def _grids(a, b, y):
    return (
        build.grid("a", "a", "input", a),
        build.grid("b", "b", "weight", b),
        build.grid("y", "y = a b", "output", y),
    )


def _links(run_a, run_b, a, b, y_name="y", names=("a", "b")):
    """Links from y to the two factors, by which of their elements it reads."""
    place = build.in_matrix(y_name, run_a(a).shape)
    parts = zip((run_a, run_b), (a, b), names, strict=True)
    return tuple(
        found
        for run, value, name in parts
        for found in build.link(build.reads(run, value), place, build.in_matrix(name, value.shape))
    )


def _entries(a, b) -> Step:
    y = matmul(a, b)
    (m, k), n = a.shape, b.shape[1]

    def frame(i, j):
        terms = [f"{build.signed(a[i, p])}·{build.signed(b[p, j])}" for p in range(k)]
        return Frame(
            f"y[{i}, {j}] = {' + '.join(terms)} = {build.number(y[i, j])}",
            {"a": tuple((i, p) for p in range(k)), "b": tuple((p, j) for p in range(k))},
            {"y": ((i, j),)},
        )

    return Step(
        "Row times column",
        (
            f"({m}, {k}) x ({k}, {n}) = ({m}, {n}): {m} x {n} entries of {k} multiply-adds each, "
            f"{m * n * k:,} in all.",
        ),
        _grids(a, b, y),
        _links(lambda v: matmul(v, b), lambda v: matmul(a, v), a, b),
        tuple(frame(i, j) for i in range(m) for j in range(n)),
    )


def _blocks(a_shape, b_shape, size) -> list[tuple[range, range, range]]:
    """(rows, columns, inner) of every product of two blocks, the inner ones last."""
    def cuts(extent):
        return [range(s, min(s + size, extent)) for s in range(0, extent, size)]

    (m, k), n = a_shape, b_shape[1]
    return [(i, j, p) for i in cuts(m) for j in cuts(n) for p in cuts(k)]


def _by_blocks(a, b, blocks) -> Step:
    y = np.zeros((len(a), b.shape[1]))
    frames = []
    for i, j, p in blocks:
        y[np.ix_(i, j)] += matmul(a[np.ix_(i, p)], b[np.ix_(p, j)])
        texts = {at: build.number(y[at]) for at in product(i, j)}
        frames.append(
            Frame(
                f"y[{_span(i)}, {_span(j)}] += a[{_span(i)}, {_span(p)}] b[{_span(p)}, {_span(j)}]",
                {"a": tuple(product(i, p)), "b": tuple(product(p, j))},
                {"y": tuple(texts)},
                {"y": texts},
            )
        )
    same = "equal to" if np.array_equal(y, matmul(a, b)) else "not equal to"
    return Step(
        "The same, block by block",
        (
            "Cut into blocks, the product is one of matrices whose entries are matrices: y starts "
            f"as zeros, and {len(blocks)} products of small blocks are added to it. The end is "
            f"{same} the whole product.",
        ),
        _grids(a, b, np.zeros_like(y)),
        frames=tuple(frames),
        shown=-1,
    )


def _span(indices: range) -> str:
    return f"{indices[0]}:{indices[-1] + 1}"


def _traffic(a, b, blocks) -> Step:
    (m, k), n = a.shape, b.shape[1]
    work = m * n * k
    loads = {
        "entry by entry": sum(2 * k for _ in range(m * n)),
        "block by block": sum(len(i) * len(p) + len(p) * len(j) for i, j, p in blocks),
        "each value once": a.size + b.size,
    }
    table = [[count, work / count] for count in loads.values()]
    return Step(
        "Why blocks",
        (
            "A block that fits into the cache, or into registers, is loaded once and used for a "
            "whole row or column of other entries. The multiply-adds stay the same; the values "
            "that come from slow memory become fewer, by up to the block's size:",
        ),
        (
            build.grid(
                "traffic", f"values loaded for {work:,} multiply-adds", "table", table,
                tuple(loads), ("values loaded", "multiply-adds each"),
            ),
        ),
    )  # fmt: skip


def _backward(a, b) -> Step:
    dy = build.weights((len(a), b.shape[1]), seed=3)
    da, db = matmul(dy, b.T), matmul(a.T, dy)
    (m, k), n = a.shape, b.shape[1]
    return Step(
        "Backward: two products more",
        (
            "An entry of a has been multiplied by a row of b, so its gradient is that row times "
            "the gradients of its results:",
            f"    da = dy b^T   ({m}, {n}) x ({n}, {k}) = ({m}, {k})\n"
            f"    db = a^T dy   ({k}, {m}) x ({m}, {n}) = ({k}, {n})",
            "Each costs as much as the forward product, which is why a training step costs about "
            "three times what inference does.",
        ),
        (
            build.grid("dy", "dy", "gradient", dy),
            build.grid("b", "b", "weight", b),
            build.grid("da", "da = dy b^T", "gradient", da),
            build.grid("a", "a", "input", a),
            build.grid("db", "db = a^T dy", "gradient", db),
        ),
        (
            *_links(lambda v: matmul(v, b.T), lambda v: matmul(dy, v.T), dy, b, "da", ("dy", "b")),
            *_links(lambda v: matmul(v.T, dy), lambda v: matmul(a.T, v), a, dy, "db", ("a", "dy")),
        ),
        tuple(
            Frame(
                f"da[{i}, {p}] = row {i} of dy times row {p} of b = {build.number(da[i, p])}",
                {"dy": tuple((i, j) for j in range(n)), "b": tuple((p, j) for j in range(n))},
                {"da": ((i, p),)},
            )
            for i in range(m)
            for p in range(k)
        ),
    )

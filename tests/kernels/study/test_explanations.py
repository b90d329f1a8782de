"""What the explanations show, against the reference kernels and against counting by hand."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.reference.dropout import philox4x32
from kernels.reference.winograd import conv2d_winograd
from kernels.study.explanations import EXPLANATIONS, explanation
from kernels.study.explanations.build import TooLarge
from kernels.study.explanations.model import KINDS, TONES, texts_at
from minidl.testing import conv2d_parameters, pool2d_parameters

some = settings(max_examples=25, deadline=None)


def grid_of(step, name):
    (grid,) = [grid for grid in step.grids if grid.name == name]
    return grid


def values(step, name, frame=-1):
    """The numbers of a grid without its padding, as a matrix."""
    grid, texts = grid_of(step, name), texts_at(step, frame)[name]
    rows = [
        [float(text) for text, cell in zip(row, cells, strict=True) if not is_outside(cell)]
        for row, cells in zip(texts, grid.cells, strict=True)
    ]
    return np.array([row for row in rows if row])


def is_outside(cell):
    return cell.tone in ("padding", "outside")


def planes(step, name, shape):
    """The numbers of all planes of an array (N, C, H, W)."""
    n, c, *size = shape
    names = [
        f"{name}[{i}, {j}]" if n > 1 else f"{name}[{j}]" if c > 1 else name
        for i in range(n)
        for j in range(c)
    ]
    return np.array([values(step, plane) for plane in names]).reshape(n, c, *size)


def linked(step, source, target):
    """The pairs of all links between the grids whose names start so."""
    return {
        ((link.source, here), (link.target, there))
        for link in step.links
        for here, there in link.pairs
        if link.source.startswith(source) and link.target.startswith(target)
    }


def check_structure(shown):
    """Everything that refers to a cell refers to one that is there."""
    for step in shown.steps:
        shapes = {grid.name: grid.shape for grid in step.grids}
        assert len(shapes) == len(step.grids)
        for grid in step.grids:
            assert grid.kind in KINDS
            assert len(grid.cells) == grid.shape[0]
            for row in grid.cells:
                assert len(row) == grid.shape[1]
                assert all(cell.tone in TONES for cell in row)
                assert all(cell.level is None or 0 <= cell.level <= 1 for cell in row)
        spots = [(name, at) for frame in step.frames for marks in (frame.marks, frame.strong)
                 for name, cells in marks.items() for at in cells]  # fmt: skip
        spots += [(name, at) for frame in step.frames for name in frame.texts
                  for at in frame.texts[name]]  # fmt: skip
        spots += [spot for pair in linked(step, "", "") for spot in pair]
        for name, (row, column) in spots:
            assert 0 <= row < shapes[name][0] and 0 <= column < shapes[name][1], (name, row, column)
        assert -len(step.frames) <= step.shown < max(1, len(step.frames))


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_defaults(name):
    shown = explanation(name)
    assert shown.name == name
    assert len(shown.steps) >= 3
    check_structure(shown)


def window_options(p):
    n, c, *size = p.x_shape
    return {"size": tuple(size), "kernel": p.weight_shape[2:], "stride": p.stride,
            "padding": p.padding, "dilation": p.dilation, "channels": c}  # fmt: skip


def taps(p, v, u):
    """(i, j, row, column) of the pixels that output (v, u) reads, by the definition."""
    for i, j in product(*map(range, p.weight_shape[2:])):
        row = v * p.stride[0] + i * p.dilation[0] - p.padding[0]
        yield i, j, row, u * p.stride[1] + j * p.dilation[1] - p.padding[2]


def counts_by_hand(p):
    """How many windows read each pixel of a plane."""
    counts = np.zeros(p.x_shape[2:], int)
    for v, u in np.ndindex(p.y_shape[2:]):
        for _, _, row, column in taps(p, v, u):
            if 0 <= row < counts.shape[0] and 0 <= column < counts.shape[1]:
                counts[row, column] += 1
    return counts


@given(conv2d_parameters())
@some
def test_im2col(p):
    shown = explanation("im2col", batch=p.x_shape[0], **window_options(p))
    check_structure(shown)
    _, columns, shapes, backward = shown.steps
    index = np.arange(math.prod(p.x_shape), dtype=float).reshape(p.x_shape)
    cols = reference.im2col(index, p.weight_shape[2:], *p.settings[:3])
    texts = np.array(grid_of(columns, "cols").texts())
    cells = grid_of(columns, "cols").cells
    outside = np.array([[is_outside(cell) for cell in row] for row in cells])
    np.testing.assert_array_equal(texts[~outside].astype(float), cols[~outside])
    assert (cols[outside] == 0).all() and (texts[outside] == "·").all()
    for frame, (n, v, u) in zip(
        columns.frames, np.ndindex(p.x_shape[0], *p.y_shape[2:]), strict=True
    ):
        marked = {at for name, cells in frame.marks.items() if name.startswith("x") for at in cells}
        padded = {(r + p.padding[0], c + p.padding[2]) for _, _, r, c in taps(p, v, u)}
        assert marked == padded, (n, v, u)
    sizes = [f"{count:,}" for count in (*cols.shape, cols.size, 4 * cols.size)]
    assert grid_of(shapes, "shapes").texts()[1] == sizes
    ones = reference.col2im(
        np.ones_like(cols), p.x_shape, p.weight_shape[2:], *p.settings[:3]
    )
    counts = planes(backward, "dx", p.x_shape)
    np.testing.assert_array_equal(counts, ones)
    np.testing.assert_array_equal(counts, np.broadcast_to(counts_by_hand(p), p.x_shape))
    assert len(linked(backward, "dx", "dcols")) == counts.sum()
    assert f"{int(counts.sum())} land in the image, and {int(outside.sum())}" in backward.text[1]


@given(conv2d_parameters())
@some
def test_col2im(p):
    shown = explanation("col2im", batch=p.x_shape[0], **window_options(p))
    check_structure(shown)
    adding, _, twice, transpose = shown.steps
    cols = np.array([
        [0.0 if is_outside(cell) else float(cell.text) for cell in row]
        for row in grid_of(adding, "cols").cells
    ])  # fmt: skip
    last = cols.shape[1] // 2
    for frame in (last, -1):
        part = cols.copy()
        part[:, frame + 1 :] = part[:, frame + 1 :] if frame == -1 else 0
        expected = reference.col2im(part, p.x_shape, p.weight_shape[2:], *p.settings[:3])
        actual = np.array([
            values(adding, grid.name, frame) for grid in adding.grids if grid.name != "cols"
        ]).reshape(p.x_shape)  # fmt: skip
        np.testing.assert_array_equal(actual, expected)
    x, counts, back = (planes(twice, name, p.x_shape) for name in ("x", "counts", "back"))
    np.testing.assert_array_equal(back, counts * x)
    left, right = (line.rsplit(" ", 1)[1] for line in transpose.text[1].splitlines())
    assert left == right


def test_captions_name_the_plane():
    backward = explanation("im2col", channels=2, batch=2).steps[3]
    starts = [frame.caption.split(" at ")[0] for frame in backward.frames]
    assert starts == [f"dx[{n}, {c}]" for n, c in np.ndindex(2, 2) for _ in range(25)]


def test_the_product_for_the_filters_of_each_group():
    whole = explanation("conv2d", channels=4, outputs=6).steps[3].text[0]
    assert whole.endswith("dW = dy cols^T, (6, 4) x (4, 36) = (6, 36).")
    grouped = explanation("conv2d", channels=4, outputs=6, groups=2).steps[3].text[0]
    assert grouped.endswith("(3, 4) x (4, 18) = (3, 18), for each of 2 groups.")


def brute_reads(p):
    """((output channel, v, u), (channel, row, column)) of every pixel that an output reads."""
    _, c, h, w = p.x_shape
    outputs, group_channels = p.weight_shape[0], c // p.groups
    return {
        ((o, v, u), (channel, row, column))
        for o, v, u in np.ndindex(p.y_shape[1:])
        for channel in range(c)
        if channel // group_channels == o // (outputs // p.groups)
        for _, _, row, column in taps(p, v, u)
        if 0 <= row < h and 0 <= column < w
    }


def channel_of(name):
    return int(name.split("[")[1].rstrip("]")) if "[" in name else 0


@given(conv2d_parameters(max_batch=1))
@some
def test_conv2d(p):
    options = window_options(p) | {"outputs": p.weight_shape[0], "groups": p.groups}
    shown = explanation("conv2d", **options)
    check_structure(shown)
    forward, matrices, to_image, to_filters = shown.steps
    x = planes(forward, "x", p.x_shape)
    weight = np.array([
        values(forward, grid.name) for grid in forward.grids if grid.name.startswith("weight")
    ]).reshape(p.weight_shape)  # fmt: skip
    assert weight.all()
    y = reference.conv2d(x, weight, None, *p.settings)
    np.testing.assert_array_equal(planes(forward, "y", p.y_shape), y)
    np.testing.assert_array_equal(values(matrices, "y"), y[0].reshape(p.weight_shape[0], -1))
    top, _, left, _ = p.padding
    reads = {
        ((channel_of(y_name), *here), (channel_of(x_name), there[0] - top, there[1] - left))
        for (y_name, here), (x_name, there) in linked(forward, "y", "x")
    }
    assert reads == brute_reads(p)
    dy = planes(to_image, "dy", p.y_shape)
    dx = reference.conv2d_input_grad(dy, weight, p.x_shape, *p.settings)
    np.testing.assert_array_equal(planes(to_image, "dx", p.x_shape), dx)
    often = np.broadcast_to(counts_by_hand(p) * (p.weight_shape[0] // p.groups), p.x_shape)
    np.testing.assert_array_equal(planes(to_image, "often", p.x_shape), often)
    dw = np.array([
        values(to_filters, grid.name) for grid in to_filters.grids if grid.name.startswith("dW")
    ]).reshape(p.weight_shape)  # fmt: skip
    expected = reference.conv2d_weight_grad(dy, x, p.weight_shape[2:], *p.settings)
    np.testing.assert_array_equal(dw, expected)


@given(conv2d_parameters(max_batch=1))
@some
def test_grouped_conv2d(p):
    options = window_options(p) | {"outputs": p.weight_shape[0], "groups": p.groups}
    shown = explanation("grouped_conv2d", **options)
    check_structure(shown)
    who, blocks, savings, backward = shown.steps
    o, c = p.weight_shape[0], p.x_shape[1]
    same = np.arange(o)[:, None] // (o // p.groups) == np.arange(c) // (c // p.groups)
    reads = np.array(grid_of(who, "reads").texts()) == "1"
    seen = any(True for _ in brute_reads(p))  # false where outputs see nothing but padding
    np.testing.assert_array_equal(reads, same if seen else np.zeros_like(same))
    lands = {(here[1], there[1]) for (_, here), (_, there) in linked(backward, "dx", "dy")}
    assert lands == {(int(j), int(i)) for i, j in zip(*np.nonzero(reads), strict=True)}
    matrix = np.array([[float(t or 0) for t in row] for row in grid_of(blocks, "W").texts()])
    assert np.count_nonzero(matrix) == math.prod(p.weight_shape)
    cols = np.array([[float(t.replace("·", "0")) for t in row]
                     for row in grid_of(blocks, "cols").texts()])  # fmt: skip
    np.testing.assert_array_equal(values(blocks, "y"), matrix @ cols)
    grid = grid_of(savings, "savings")
    row = grid.texts()[grid.row_labels.index(str(p.groups))]
    assert row[0] == str(math.prod(p.weight_shape))
    assert float(row[2]) == p.groups


@given(conv2d_parameters(max_batch=1), st.data())
@some
def test_conv_transpose2d(p, data):
    extra = tuple(data.draw(st.integers(0, step - 1)) for step in p.stride)
    settings_ = p.stride, p.padding, extra, p.dilation
    x_shape = (1, 1, *p.y_shape[2:])
    try:
        y_shape = reference.conv_transpose2d(
            np.zeros(x_shape), np.zeros((1, 1, *p.weight_shape[2:])), None, *settings_
        ).shape
    except ValueError:
        assume(False)
    shown = explanation(
        "conv_transpose2d", size=x_shape[2:], kernel=p.weight_shape[2:], stride=p.stride,
        padding=p.padding, output_padding=extra, dilation=p.dilation,
    )  # fmt: skip
    check_structure(shown)
    _, stamping, often, gradient = shown.steps
    x, weight = (values(stamping, name)[None, None] for name in ("x", "weight"))
    y = reference.conv_transpose2d(x, weight, None, *settings_)
    np.testing.assert_array_equal(planes(stamping, "y", y_shape), y)
    np.testing.assert_array_equal(planes(gradient, "y", y_shape), y)
    counts = planes(often, "counts", y_shape)
    assert counts.sum() == len(linked(stamping, "y", "x"))
    assert all("is not" not in text for text in gradient.text)


def pool_options(p):
    return {"size": p.x_shape[2:], "kernel": p.kernel_size, "stride": p.stride,
            "padding": p.padding, "ceil_mode": p.ceil_mode}  # fmt: skip


def pool_reads(p, y_size):
    """(output, pixel) of every real tap."""
    h, w = p.x_shape[2:]
    for v, u in np.ndindex(y_size):
        for i, j in np.ndindex(p.kernel_size):
            row = v * p.stride[0] + i * p.dilation[0] - p.padding[0]
            column = u * p.stride[1] + j * p.dilation[1] - p.padding[2]
            if 0 <= row < h and 0 <= column < w:
                yield (v, u), (row, column)


def unpadded(p, pairs):
    return {(here, (r - p.padding[0], c - p.padding[2])) for (_, here), (_, (r, c)) in pairs}


@given(pool2d_parameters(max_batch=1))
@some
def test_max_pool2d(p):
    arguments = p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode
    options = pool_options(p) | {"dilation": p.dilation}
    try:
        reference.max_pool2d(np.zeros((1, 1, *p.x_shape[2:])), *arguments)
    except ValueError:
        with pytest.raises(ValueError):
            explanation("max_pool2d", **options)
        return
    shown = explanation("max_pool2d", **options)
    check_structure(shown)
    _, winners, backward = shown.steps
    x = values(winners, "x")
    y, switches = (a[0, 0] for a in reference.max_pool2d(x[None, None], *arguments))
    np.testing.assert_array_equal(values(winners, "y"), y)
    np.testing.assert_array_equal(values(winners, "switches"), switches)
    assert unpadded(p, linked(winners, "y", "x")) == set(pool_reads(p, y.shape))
    for frame, output in zip(winners.frames, np.ndindex(y.shape), strict=True):
        (at,) = frame.strong["x"]
        row, column = at[0] - p.padding[0], at[1] - p.padding[2]
        assert row * x.shape[1] + column == switches[output]
        equal = sum(x[pixel] == y[output] for here, pixel in pool_reads(p, y.shape)
                    if here == output)  # fmt: skip
        assert ("are equal" in frame.caption) == (equal > 1)
    often = np.bincount(switches.reshape(-1), minlength=x.size).reshape(x.shape)
    np.testing.assert_array_equal(values(backward, "often"), often)
    dy = values(backward, "dy")
    dx = reference.max_unpool2d(dy[None, None], switches[None, None], x.shape)
    np.testing.assert_array_equal(values(backward, "dx"), dx[0, 0])


def test_windows_dropped_on_one_axis_and_clipped_on_the_other():
    sizes = explanation(
        "max_pool2d", size=(3, 6), kernel=(1, 3), stride=(3, 2), ceil_mode=True
    ).steps[0]
    assert "Rounding up would add a last row of windows" in sizes.text[2]
    assert "the last windows reach 0 rows and 1 column beyond" in sizes.text[2]


@given(pool2d_parameters(max_batch=1, dilated=False), st.booleans())
@some
def test_avg_pool2d(p, exclude_pad):
    shown = explanation("avg_pool2d", exclude_pad=exclude_pad, **pool_options(p))
    check_structure(shown)
    _, means, backward = shown.steps
    arguments = p.kernel_size, p.stride, p.padding, p.ceil_mode, not exclude_pad
    x = values(means, "x")
    y = reference.avg_pool2d(x[None, None], *arguments)[0, 0]
    np.testing.assert_allclose(values(means, "y"), y, rtol=1e-3)
    reads = set(pool_reads(p, y.shape))
    assert unpadded(p, linked(means, "y", "x")) == reads
    real = np.zeros(y.shape)
    often = np.zeros(x.shape)
    for output, pixel in reads:
        real[output] += 1
        often[pixel] += 1
    np.testing.assert_array_equal(values(means, "counts" if exclude_pad else "others"), real)
    np.testing.assert_array_equal(values(backward, "often"), often)
    dx = reference.avg_pool2d_backward(np.ones((1, 1, *y.shape)), (1, 1, *x.shape), *arguments)
    np.testing.assert_allclose(values(backward, "dx"), dx[0, 0], rtol=1e-3)


@given(st.integers(1, 9), st.integers(1, 7), st.booleans(), st.sampled_from([1e-4, 0.5]))
@some
def test_lrn(channels, size, size_normalized, alpha):
    shown = explanation(
        "lrn", channels=channels, size=size, size_normalized=size_normalized, alpha=alpha
    )
    check_structure(shown)
    window, conventions, mirror, terms = shown.steps
    x = values(window, "x")[:, 0].reshape(1, -1, 1, 1)
    y, scale = reference.lrn(x, size, alpha, 0.75, 2.0, size_normalized)
    table = values(window, "y")
    np.testing.assert_allclose(table[:, 1], scale.reshape(-1), rtol=1e-3)
    np.testing.assert_allclose(table[:, 2], y.reshape(-1), rtol=1e-3)
    inside = {(i, j) for i in range(channels) for j in range(channels)
              if i - size // 2 <= j <= i + (size - 1) // 2}  # fmt: skip
    assert {(i, j) for (_, (i, _)), (_, (j, _)) in linked(window, "y", "x")} == inside
    lands = {(i, j) for (_, (i, _)), (_, (j, _)) in linked(mirror, "dx", "dy")}
    assert lands == {(j, i) for i, j in inside}
    dy, dx = values(mirror, "dy").reshape(x.shape), values(mirror, "dx")
    expected = reference.lrn_backward(dy, x, scale, size, alpha, 0.75, 2.0, size_normalized)
    np.testing.assert_allclose(dx[:, 0], expected.reshape(-1), rtol=1e-3, atol=1e-12)
    how_many = [sum(i == c for i, _ in lands) for c in range(channels)]
    np.testing.assert_array_equal(dx[:, 1], how_many)
    _, direct, scales, total = values(terms, "dx").T
    np.testing.assert_allclose(direct + scales, total, atol=2e-3 * np.abs(direct).max())
    assert "it is equal to" in conventions.text[0]
    assert any("ONNX" in text for text in conventions.text[1:]) == (size % 2 == 0)


@pytest.mark.parametrize("alpha", [0.0, 1e-20, 1e-4])
def test_sums_of_lrn_do_not_depend_on_alpha(alpha):
    window = explanation("lrn", alpha=alpha, beta=-2.0).steps[0]
    squares, table = values(window, "x")[:, 1], values(window, "y")
    sums = [squares[max(0, c - 2) : c + 3].sum() for c in range(len(squares))]
    np.testing.assert_allclose(table[:, 0], sums, rtol=1e-3)
    assert all("^2 = " in frame.caption for frame in window.frames)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(2, 3))
@some
def test_batchnorm(n, channels, h, w):
    shown = explanation("batchnorm", batch=n, channels=channels, size=(h, w))
    check_structure(shown)
    statistics, _, spread, terms = shown.steps

    def array(step, name):
        return np.array([
            values(step, f"{name}[{c}]" if channels > 1 else name) for c in range(channels)
        ])  # fmt: skip

    x = array(statistics, "x").reshape(channels, -1)
    mean, biased, unbiased, _ = values(statistics, "statistics")
    np.testing.assert_allclose(mean, x.mean(axis=1), rtol=1e-3)
    np.testing.assert_allclose(biased, x.var(axis=1), rtol=1e-3)
    np.testing.assert_allclose(unbiased, x.var(axis=1, ddof=1), rtol=1e-3)
    parts = [array(terms, name) for name in ("direct", "by mean", "by variance")]
    dx = array(terms, "dx")
    largest = max(np.abs(part).max() for part in (*parts, dx))
    np.testing.assert_allclose(sum(parts), dx, atol=2e-3 * largest)
    m = n * h * w
    assert len(linked(spread, "dx", "dy")) == channels * m * m
    assert "dx sums to " + ", ".join(["0"] * channels) in terms.text[2]


@given(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
@some
def test_relu(shape):
    shown = explanation("relu", batch=shape[0], channels=shape[1], size=shape[2:])
    check_structure(shown)
    forward, backward, to_bias = shown.steps
    x, y = planes(forward, "x", shape), planes(forward, "y", shape)
    bias = values(forward, "bias")[0]
    assert bias.all()
    total = x + bias[:, None, None]
    np.testing.assert_array_equal(y, np.maximum(total, 0))
    dy, dx = planes(backward, "dy", shape), planes(backward, "dx", shape)
    np.testing.assert_array_equal(dx, np.where(total > 0, dy, 0))
    assert f"Of {x.size} gradients {np.count_nonzero(total > 0)} go through." in backward.text
    assert len(linked(backward, "dx", "dy")) == np.count_nonzero(total > 0)
    for frame, number in zip(backward.frames, np.ndindex(shape), strict=True):
        assert ("it goes through" in frame.caption) == (total[number] > 0)
    np.testing.assert_array_equal(values(to_bias, "dbias")[0], dx.sum(axis=(0, 2, 3)))
    assert len(linked(to_bias, "dbias", "dx")) == len(linked(forward, "y", "bias")) == x.size


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    st.floats(0, 0.99),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
@some
def test_dropout(shape, p, seed, step):
    shown = explanation("dropout", size=shape, p=p, seed=seed, step=step)
    check_structure(shown)
    words, rounds, keep, backward = shown.steps
    mask = reference.dropout_mask(shape, p, seed, step)
    assert [[t == "1" for t in row] for row in grid_of(keep, "mask").texts()] == mask.tolist()
    x = values(keep, "x")
    np.testing.assert_allclose(values(keep, "y"), reference.dropout(x, p, seed, step), rtol=1e-3)
    low, high = seed & 0xFFFFFFFF, seed >> 32
    block = philox4x32((0, 0, step & 0xFFFFFFFF, step >> 32), (low, high))
    expected = [f"{int(word):08x}" for word in block]
    assert grid_of(words, "words").texts()[0] == expected
    assert grid_of(rounds, "block0").texts()[-1] == expected
    assert grid_of(rounds, "bits").texts()[0] == ["1"]
    kept = {here for (_, here), _ in linked(keep, "y", "x")}
    assert kept == {(int(r), int(c)) for r, c in zip(*np.nonzero(mask), strict=True)}
    dy = values(backward, "dy")
    dx = reference.dropout(dy, p, seed, step)
    np.testing.assert_allclose(values(backward, "dx"), dx, rtol=1e-3)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from([2, 4]),
)
@some
def test_winograd(size, padding, m):
    assume(size[0] + sum(padding[:2]) >= 3 and size[1] + sum(padding[2:]) >= 3)
    shown = explanation("conv2d_winograd", size=size, padding=padding, tile=str(m))
    check_structure(shown)
    tiles, _, one, count, backward = shown.steps
    x = values(tiles, "x")[None, None]
    weight = values(one, "g")[None, None]
    y = reference.conv2d(x, weight, padding=padding)
    assert y.shape == conv2d_winograd(x, weight, padding=padding, size=m).shape
    np.testing.assert_allclose(values(tiles, "y"), y[0, 0], atol=1e-9)
    down, across = (-(-extent // m) for extent in y.shape[2:])
    overlaps = values(tiles, "often")
    assert overlaps.sum() == down * across * (m + 2) ** 2 and overlaps.max() <= 4
    assert len(one.frames) == down * across
    for tile in range(down * across):
        v, u = divmod(tile, across)
        block = y[0, 0, v * m : v * m + m, u * m : u * m + m]
        shown_block = values(one, "Y", tile)[: block.shape[0], : block.shape[1]]
        np.testing.assert_allclose(shown_block, block, rtol=1e-3, atol=1e-9)
    kept = y.shape[2] * y.shape[3]
    table = grid_of(count, "count").texts()
    assert [int(row[1]) for row in table] == [
        9 * kept, *(math.prod(-(-e // k) for e in y.shape[2:]) * (k + 2) ** 2 for k in (2, 4))
    ]  # fmt: skip
    assert ("less than nothing is cut" in backward.text[0]) == (max(padding) > 2)
    dy = values(backward, "dy")[None, None]
    dx = reference.conv2d_input_grad(dy, weight, x.shape, padding=padding)
    np.testing.assert_allclose(values(backward, "dx"), dx[0, 0], atol=1e-9)


@given(*[st.integers(1, 6)] * 3, st.integers(1, 4))
@some
def test_matmul(m, k, n, block):
    shown = explanation("matmul", rows=m, inner=k, columns=n, block=block)
    check_structure(shown)
    entries, by_blocks, traffic, backward = shown.steps
    a, b = values(entries, "a"), values(entries, "b")
    np.testing.assert_array_equal(values(entries, "y"), a @ b)
    np.testing.assert_array_equal(values(by_blocks, "y"), a @ b)
    assert len(linked(entries, "y", "a")) == len(linked(entries, "y", "b")) == m * n * k
    loads = [int(row[0]) for row in grid_of(traffic, "traffic").texts()]
    assert loads[0] == 2 * m * n * k and loads[2] == a.size + b.size
    assert loads[1] == a.size * -(-n // block) + b.size * -(-m // block)
    dy = values(backward, "dy")
    np.testing.assert_array_equal(values(backward, "da"), dy @ b.T)
    np.testing.assert_array_equal(values(backward, "db"), a.T @ dy)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("im2col", {"size": 10**6}, "the padded image would have"),
        ("im2col", {"size": 40, "kernel": 5}, "the column matrix would have"),
        ("conv2d", {"outputs": 1000}, "the matrix of filters would have"),
        ("conv2d", {"size": 9, "channels": 5, "outputs": 50}, "links between cells"),
        ("conv_transpose2d", {"size": 1000}, "the padded image would have"),
        ("max_pool2d", {"size": 10**6}, "the image would have"),
        ("max_pool2d", {"kernel": 10**6, "stride": 10**6, "ceil_mode": True}, "windows reach"),
        ("avg_pool2d", {"kernel": 10**6, "stride": 10**6, "ceil_mode": True}, "windows reach"),
        ("conv2d_winograd", {"size": 10**6}, "the image with its tiles would have"),
        ("lrn", {"channels": 10**6}, "the table would have"),
        ("batchnorm", {"batch": 10**6}, "the batch would have"),
        ("dropout", {"size": 10**6}, "the array would have"),
        ("relu", {"size": 10**6}, "the images would have"),
        ("matmul", {"rows": 10**6}, "the cube of multiply adds would have"),
    ],
)
def test_what_is_too_large_is_refused(name, options, message):
    with pytest.raises(TooLarge, match=message):
        explanation(name, **options)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("im2col", {"kernel": 9}, "kernel_size"),
        ("im2col", {"stride": 0}, "stride must be at least 1"),
        ("col2im", {"padding": (1, 2, 3)}, "padding must be"),
        ("conv2d", {"channels": 3, "groups": 2}, "groups must divide"),
        ("conv_transpose2d", {"output_padding": 2}, "output_padding must be"),
        ("max_pool2d", {"padding": 2}, "padding must be at most half"),
        ("lrn", {"k": 0.0}, "k must be above 0"),
        ("lrn", {"alpha": -1.0}, "alpha must be at least 0"),
        ("lrn", {"beta": math.nan}, "beta must be a finite number"),
        ("lrn", {"alpha": math.inf}, "alpha must be a finite number"),
        ("lrn", {"alpha": 1e308}, "alpha_times_size must be a finite number"),
        ("lrn", {"alpha": 1e304}, "larger than any float"),
        ("lrn", {"beta": -1e4}, "larger than any float"),
        ("lrn", {"size": 10**400}, "larger than any float"),
        ("batchnorm", {"eps": math.inf}, "eps must be a finite number"),
        ("batchnorm", {"batch": 1, "size": 1}, "more than one value a channel"),
        ("batchnorm", {"eps": 0.0}, "eps must be above 0"),
        ("dropout", {"p": 1.0}, "p must be in"),
        ("dropout", {"seed": 2**64}, "seed must be in"),
    ],
)
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        explanation(name, **options)


def test_unknown_name():
    with pytest.raises(KeyError):
        explanation("transformer")

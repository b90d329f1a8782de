"""Winograd's convolution: overlapping tiles, three transforms, and fewer multiplications."""

import click
import numpy as np

from kernels.geometry import conv_output_size, padding4, pair
from kernels.reference import conv2d, conv2d_input_grad
from kernels.reference.winograd import MATRICES, conv2d_winograd, on_both_axes, tiles
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Link, Step
from kernels.study.explanations.windows import span

OPTIONS = (
    options.integers("--size", 6, "Height and width of the image."),
    options.integers("--padding", 1, "Rows and columns of padding: one, two or four numbers."),
    options.option(
        "--tile", "2", "m of F(m x m, 3 x 3): the height and width of a tile's result.",
        type=click.Choice([str(size) for size in MATRICES]),
    ),
)  # fmt: skip
KERNEL = (3, 3)


class Tiling:
    """One image of small integers, one filter, and the tiles that the image is cut into."""

    def __init__(self, size, padding, m):
        self.m, self.padding = m, padding4("padding", padding)
        self.shape = (1, 1, *pair("size", size))
        steps = (1, 1), self.padding, (1, 1)
        self.output_size = conv_output_size(*self.shape[2:], KERNEL, *steps)
        self.count = tuple(-(-extent // m) for extent in self.output_size)
        whole = tuple(m * count + 2 for count in self.count)
        build.check_cells(the_image_with_its_tiles=whole[0] * whole[1])
        padded = [self.shape[2 + axis] + sum(self.padding[2 * axis :][:2]) for axis in (0, 1)]
        self.beyond = whole[0] - padded[0], whole[1] - padded[1]
        self.x = build.whole_numbers(self.shape, 0, 5)
        self.weight = build.weights((1, 1, 3, 3))
        self.matrices = MATRICES[m]
        index = np.arange(whole[0] * whole[1], dtype=float).reshape(1, 1, *whole)
        self.whole = whole
        # For every tile the flat indices of its pixels in the padded image.
        self.sources = tiles(index, m, (0, 0, 0, 0), *self.count)[0, 0].reshape(
            -1, m + 2, m + 2
        ).astype(int)  # fmt: skip
        self.pixels = tiles(self.x, m, self.padding, *self.count)[0, 0].reshape(-1, m + 2, m + 2)

    def run(self, x):
        """The convolution of an image."""
        return conv2d_winograd(x, self.weight, None, self.padding, size=self.m)

    def x_grid(self, plane, title="x", name="x", kind="input", levels=None):
        """A grid of a plane (H, W) with its padding and what the tiles reach beyond it."""
        return build.padded_grid(name, title, plane, self.padding, kind, self.beyond, levels)

    def tile_marks(self, tile, name="x") -> dict:
        """Marks of the pixels of one tile."""
        return build.places(self.sources[tile].reshape(-1), build.in_matrix(name, self.whole))

    def output_marks(self, tile, name="y") -> dict:
        """Marks of the outputs of one tile that are kept."""
        down, across = divmod(tile, self.count[1])
        rows = range(down * self.m, min((down + 1) * self.m, self.output_size[0]))
        columns = range(across * self.m, min((across + 1) * self.m, self.output_size[1]))
        return {name: tuple((r, c) for r in rows for c in columns)}


def explain(size, padding, tile) -> Explanation:
    """The steps of F(m x m, 3 x 3) on one channel, and what it saves."""
    t = Tiling(size, padding, int(tile))
    steps = _tiles(t), _matrices(t), _one_tile(t), _multiplications(t), _backward(t)
    shown = ("x", str(t.shape)), ("padding", build.as_text(t.padding)), ("m", str(t.m))
    return Explanation(
        "conv2d_winograd", f"Winograd's F({t.m}x{t.m}, 3x3): fewer multiplications", shown, steps
    )


def _tiles(t) -> Step:
    y = t.run(t.x)
    dependence = build.reads(t.run, t.x)
    often = np.bincount(t.sources.reshape(-1), minlength=t.whole[0] * t.whole[1])
    often = often.reshape(t.whole)
    top, _, left, _ = t.padding
    m, (down, across) = t.m, t.count

    def frame(tile):
        rows, columns = np.unravel_index(t.sources[tile], t.whole)
        kept = len(t.output_marks(tile)["y"])
        cut = f", {m * m - kept} cut" if kept < m * m else ""
        return Frame(
            f"tile {divmod(tile, across)}: rows {span(rows - top)}, columns {span(columns - left)} "
            f"give {build.counted(kept, 'output')}{cut}",
            {**t.tile_marks(tile), **t.tile_marks(tile, "often")},
            t.output_marks(tile),
        )

    return Step(
        "Tiles that overlap",
        (
            f"The result is cut into {m}x{m} blocks, {down} down and {across} across. Each is "
            f"computed from a tile of {m + 2}x{m + 2} pixels; tiles overlap by two, so that a "
            f"pixel is in up to {often.max()} of them."
            + (" Crosses lie beyond the padding and are read as zero; what they give is cut off."
               if max(t.beyond) else ""),
            "In the reference, which multiplies by the zeros of the matrices too, all outputs of a "
            "tile depend on all of its pixels: a NaN in one spreads over the tile, where a plain "
            "convolution would keep it to the windows that hold it.",
        ),
        (
            t.x_grid(t.x[0, 0]),
            build.grid("y", "y", "output", y[0, 0]),
            build.grid("often", "tiles that read a pixel", "matrix", often,
                       range(-top, t.whole[0] - top), range(-left, t.whole[1] - left),
                       levels=build.heat(often)),
        ),
        build.link(
            dependence, build.in_planes("y", y.shape), build.in_planes("x", t.shape, (top, left))
        ),
        tuple(frame(tile) for tile in range(len(t.sources))),
    )  # fmt: skip


def _matrices(t) -> Step:
    b, g, a = t.matrices
    m = t.m
    return Step(
        "The matrices",
        (
            f"In one dimension F({m}, 3) gives {m} outputs of 3 taps from {m + 2} pixels with "
            f"{m + 2} multiplications instead of {3 * m}. Used along rows and columns:",
            "    Y = A^T [(G g G^T) * (B^T d B)] A",
            "B^T and A^T hold only numbers by which one multiplies by adding or shifting; G's "
            "fractions are applied once to each filter, for all tiles.",
        ),
        (
            build.grid("B", "B^T, for pixels", "input", b, show=build.fraction),
            build.grid("G", "G, for filters", "weight", g, show=build.fraction),
            build.grid("A", "A^T, for outputs", "output", a, show=build.fraction),
        ),
    )


def _one_tile(t) -> Step:
    b, g, a = t.matrices
    v = on_both_axes(b, t.pixels)
    u = on_both_axes(g, t.weight)[0, 0]
    y = on_both_axes(a, u * v)
    plain = conv2d(t.pixels[:, None], t.weight)[:, 0]
    rest = np.abs(y - plain).max()

    def texts(values):
        return {at: build.number(value) for at, value in np.ndenumerate(values)}

    def frame(tile):
        whole = tuple(np.ndindex(v[tile].shape))
        product = {"d": t.pixels, "V": v, "M": u * v, "Y": y}
        return Frame(
            f"tile {divmod(tile, t.count[1])}: {v[tile].size} multiplications in U * V give "
            f"{t.m * t.m} outputs, for which plain sums take {9 * t.m * t.m}",
            {"U": whole, "V": whole},
            {"M": whole},
            {name: texts(values[tile]) for name, values in product.items()},
        )

    corners = (t.m + 2, t.m + 2)
    links = (
        *_linear("V", "d", lambda d: on_both_axes(b, d), corners),
        *_linear("U", "g", lambda w: on_both_axes(g, w), KERNEL),
        *(Link("M", name, tuple((at, at) for at in np.ndindex(corners))) for name in "UV"),
        *_linear("Y", "M", lambda k: on_both_axes(a, k), corners),
    )
    return Step(
        "One tile, all the way",
        (
            "d is the tile, g the filter. Both are transformed, multiplied element by element, and "
            "the products transformed back. Y is the block of the plain convolution, which differs "
            f"from it by {rest:.1g} at most in float64.",
        ),
        (
            build.grid("d", "d", "input", t.pixels[0]),
            build.grid("V", "V = B^T d B", "input", v[0]),
            build.grid("g", "g", "weight", t.weight[0, 0]),
            build.grid("U", "U = G g G^T", "weight", u),
            build.grid("M", "M = U * V", "matrix", (u * v)[0]),
            build.grid("Y", "Y = A^T M A", "output", y[0]),
        ),
        links,
        tuple(frame(tile) for tile in range(len(v))),
    )


def _linear(source, target, run, shape) -> tuple[Link, ...]:
    """Links by which entries of a matrix a linear map of it uses."""
    result = run(np.zeros(shape)).shape
    used = build.coefficients(run, shape) != 0
    return build.link(used, build.in_matrix(source, result), build.in_matrix(target, shape))


def _multiplications(t) -> Step:
    kept = t.output_size[0] * t.output_size[1]
    table = [["-", 9 * kept, kept, kept, 1.0]]
    for m in MATRICES:
        blocks = [-(-extent // m) for extent in t.output_size]
        count = blocks[0] * blocks[1]
        products = count * (m + 2) ** 2
        table.append([count, products, count * m * m, kept, 9 * kept / products])
    names = ("plain", *(f"F({m}x{m}, 3x3)" for m in MATRICES))
    errors = ", ".join(f"{name} {error:.1g}" for name, error in zip(names, _errors(t), strict=True))
    row = 1 + list(MATRICES).index(t.m)
    return Step(
        "The multiplications, counted",
        (
            "Multiplications for one channel and one filter; with C channels and O filters the "
            "products grow by C O. Where the result is no multiple of the tile, whole tiles are "
            "computed and cut, which eats up part of the gain.",
            "The price is exactness. Largest errors in float32, over the largest result, on 16 "
            f"channels of normal numbers of this size: {errors}.",
        ),
        (
            build.grid(
                "count", "multiplications", "table", np.array(table, dtype=object), names,
                ("tiles", "products", "computed", "kept", "times fewer"),
                show=lambda value: value if isinstance(value, str) else build.number(value),
            ),
        ),
        frames=(
            Frame(
                f"here {names[row]}: {table[row][1]:,} multiplications instead of "
                f"{table[0][1]:,}",
                {"count": tuple((row, column) for column in range(5))},
            ),
        ),
    )  # fmt: skip


def _errors(t):
    """Largest errors in float32 over the largest result: plain, then each of MATRICES."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((1, 16, *t.shape[2:])).astype(np.float32)
    weight = draw.standard_normal((4, 16, 3, 3)).astype(np.float32)
    exact = conv2d(x.astype(float), weight.astype(float), padding=t.padding)
    results = [conv2d(x, weight, padding=t.padding)]
    results += [conv2d_winograd(x, weight, None, t.padding, size=m) for m in MATRICES]
    return [np.abs(y - exact).max() / np.abs(exact).max() for y in results]


def _backward(t) -> Step:
    dy = build.weights((1, 1, *t.output_size), seed=3)
    turned = np.ascontiguousarray(t.weight[:, :, ::-1, ::-1])
    # What outputs in more than two rows of padding give falls outside of the image.
    top, bottom, left, right = (max(0, p - 2) for p in t.padding)
    oh, ow = t.output_size
    inner = np.ascontiguousarray(dy[:, :, top : oh - bottom, left : ow - right])
    padding = tuple(max(0, 2 - p) for p in t.padding)
    dx = conv2d_winograd(inner, turned, None, padding, size=t.m)
    plain = conv2d_input_grad(dy, t.weight, t.shape, padding=t.padding)
    rest = np.abs(dx - plain).max()
    cut = " What would be padded by less than nothing is cut." if max(t.padding) > 2 else ""
    shown = build.as_text(tuple(2 - p for p in t.padding))
    return Step(
        "Backward: the same with the filter turned",
        (
            "At stride 1 the gradient by the image is itself a convolution: of dy, padded by "
            f"2 - p (here {shown}), with the filter turned by half a circle.{cut} So the same "
            f"tiles serve. It differs from conv2d_input_grad by {rest:.1g} at most.",
        ),
        (
            build.grid("dy", "dy", "gradient", dy[0, 0]),
            build.grid("turned", "g, turned", "weight", turned[0, 0]),
            build.grid("dx", "dx", "gradient", dx[0, 0]),
        ),
    )

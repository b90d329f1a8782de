"""PNG files of what the other modules find; needs matplotlib. All are written atomically."""

import math

import numpy as np

from minidl.files import atomic_path
from minidl.visualize.filters import (
    around_grey,
    as_picture,
    filter_pictures,
    map_pictures,
    tile,
    tile_columns,
    unit_range,
)

_DPI = 120
_LEGEND_CLASSES = 10


def save_filters(path, weight: np.ndarray, layer: str) -> None:
    """The filters of a weight (O, C, kh, kw), each scaled to its own range."""
    pictures = filter_pictures(weight)
    count, channels, height, width = weight.shape
    what = f"{count} filters of {channels}x{height}x{width}"
    _save_sheet(path, pictures, f"{layer}: {what}, each scaled to its own range")


def save_feature_maps(path, maps: np.ndarray, layer: str) -> None:
    """The maps (C, h, w) of one image; see `map_pictures`."""
    count, height, width = maps.shape
    scale = "all scaled to one range" if height * width == 1 else "each scaled to its own range"
    _save_sheet(path, map_pictures(maps), f"{layer}: {count} maps of {height}x{width}, {scale}")


def save_projections(path, image, projections, patches, layer: str) -> None:
    """Of each map its strongest activation in `image`: the projection beside the patch it sees.

    `image` (C, H, W) is shown first, with the patches framed; `projections` {channel: (C, H, W)}
    and `patches` {channel: Patch} belong together.
    """
    title = f"Strongest activations of {layer}: projections (left) and the patches they see"
    figure, cells = _grid(len(patches) + 1, cell=(2.8, 1.7), title=title)
    whole = cells[0].subplots()
    _show(whole, unit_range(as_picture(image)))
    whole.set_title("the image, its patches framed", fontsize=8)
    for number, (channel, patch) in enumerate(patches.items()):
        colour = f"C{number % 10}"
        _frame(whole, patch.box, colour)
        cell = cells[number + 1]
        row, column = patch.position
        cell.suptitle(
            f"map {channel}: {patch.value:.3g} at ({row}, {column})", fontsize=8, color=colour
        )
        left, right = cell.subplots(1, 2)
        _show(left, around_grey(as_picture(patch.crop(projections[channel]))))
        _show(right, _stretched(patch.crop(image), image))
    _save(figure, path)


def save_top_patches(path, patches, projections, layer: str) -> None:
    """Of each map the images' patches that it responds to most, beside their projections.

    `patches` {channel: [Patch, ...]}, `projections` {channel: (k, C, H, W)} in the same order.
    """
    title = f"Images with the strongest activations of {layer}: projections (left) and patches"
    figure, cells = _grid(len(patches), cell=(4.4, 2.4), title=title)
    for cell, (channel, chosen) in zip(cells, patches.items(), strict=True):
        cell.suptitle(
            f"map {channel}: {chosen[0].value:.3g} down to {chosen[-1].value:.3g}", fontsize=9
        )
        left, right = cell.subplots(1, 2)
        pairs = list(zip(chosen, projections[channel], strict=True))
        _show(left, tile([around_grey(as_picture(p.crop(down))) for p, down in pairs]))
        _show(right, tile([_stretched(p.crop(p.image), p.image) for p, _ in pairs]))
    _save(figure, path)


def save_occlusion(path, image, result, class_names, layer: str) -> None:
    """The image (C, H, W) beside the maps of an `Occlusion` with an activation."""
    from matplotlib.patches import Rectangle

    figure = _figure((12, 3.4))
    figure.suptitle(f"A grey square of {result.size} pixels slides over the image")
    first, *others = figure.subplots(1, 4)
    height, width = image.shape[1:]
    first.imshow(unit_range(as_picture(image)), cmap="gray", vmin=0, vmax=1)
    first.add_patch(Rectangle((-0.5, -0.5), result.size, result.size, color="0.5"))
    first.set_title("the image and the square", fontsize=9)
    half = result.stride / 2
    rows, columns = result.probability.shape
    extent = (-half, columns * result.stride - half, rows * result.stride - half, -half)
    name = _text(class_names[result.label])
    total = f"total activation of\n{layer}, map {result.channel}"
    heat = (
        (others[0], result.probability, f"probability of class\n{name}", (0, 1)),
        (others[1], result.activation, total, ()),
    )
    for axes, values, title, limits in heat:
        drawn = axes.imshow(values, extent=extent, cmap="viridis", clim=limits or None)
        figure.colorbar(drawn, ax=axes, shrink=0.8)
        axes.set_title(title, fontsize=9)
    _draw_classes(others[2], result.best, class_names, extent)
    for axes in (first, *others):
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.tick_params(labelsize=7)
    for axes in others:
        axes.set_xlabel("centre of the square: column", fontsize=8)
    others[0].set_ylabel("row", fontsize=8)
    _save(figure, path)


def _text(name):
    """The beginning of a class's name, such that Matplotlib takes it as it stands."""
    # A dollar would start a formula; an underscore at the front keeps an entry out of the legend.
    name = name[:20].replace("$", r"\$")
    return " " + name if name.startswith("_") else name


def _draw_classes(axes, best, class_names, extent):
    """The most probable classes as areas of colour, with a legend of the most frequent."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    classes, counts = np.unique(best, return_counts=True)
    classes = classes[np.argsort(-counts, kind="stable")]
    colours = colormaps["tab10" if len(classes) <= 10 else "tab20"].colors
    colour_of = {label: colours[i % len(colours)] for i, label in enumerate(classes)}
    axes.imshow([[colour_of[label] for label in row] for row in best], extent=extent)
    shown = [(colour_of[label], class_names[label]) for label in classes[:_LEGEND_CLASSES]]
    axes.legend(
        handles=[Patch(color=colour, label=_text(name)) for colour, name in shown],
        fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1,
    )  # fmt: skip
    axes.set_title("most probable class", fontsize=9)


def _save_sheet(path, pictures, title):
    """Tiles, with the number of each row's first picture and the offsets within a row."""
    gap = min(1, pictures[0].size - 1)  # single values lie side by side
    sheet = tile(pictures, gap)
    columns = tile_columns(len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[0] + gap, pictures[0].shape[1] + gap
    side = min(max(4.0, 0.5 * columns), 14)
    figure = _figure((side + 0.5, side * rows / columns * height / width + 0.9))
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(np.arange(columns) * width + (width - gap - 1) / 2, np.arange(columns))
    axes.set_yticks(np.arange(rows) * height + (height - gap - 1) / 2, np.arange(rows) * columns)
    axes.tick_params(length=0, labelsize=6 if columns > 12 else 8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("number = left + below", fontsize=8)
    _save(figure, path)


def _grid(count, cell, title):
    """A figure with at least `count` cells (subfigures) of `cell` inches, and its cells in use."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = _figure((columns * cell[0], rows * cell[1] + 0.4))
    figure.suptitle(title, fontsize=10)
    return figure, list(figure.subfigures(rows, columns, squeeze=False).ravel()[:count])


def _figure(size):
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _show(axes, picture):
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def _frame(axes, box, colour):
    from matplotlib.patches import Rectangle

    top, bottom, left, right = box
    axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=colour)
    )


def _stretched(patch, image):
    """A patch of `image` as a picture, on the scale of the whole image."""
    low, high = float(image.min()), float(image.max())
    return (as_picture(patch).astype(np.float64) - low) / (high - low if high > low else 1)


def _save(figure, path):
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)

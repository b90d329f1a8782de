"""The command `visualize`: what a trained network makes of a picture, as PNG files."""

from pathlib import Path

import click
import numpy as np

from kernels.command_line import UserError, user_errors
from minidl.cli import common

_SQUARE = 4  # side of the image over side of the occluding square
_STEPS = 16  # places of the square along the shorter side
_PATCHES = 9  # for each map, as in figure 2 of the paper
_BATCH = 64


def visualize_command(architecture) -> click.Command:
    """The command ``visualize`` of a network."""

    def command(
        backend, seed, threads, data, skip_unreadable, workers, checkpoint, image, layer, out,
        channels, top, label, invert,
    ):  # fmt: skip
        from minidl.data import DataLoader

        device = common.setup(backend, seed, threads)
        model, recipe, state = common.restored(architecture, checkpoint, device)
        _check_layer(model, layer)
        pixels = common.read_image(image, state.about["image_shape"], invert)
        _, dataset = common.load_data(data, skip_unreadable)
        common.check_images(architecture, dataset, recipe, state.about["options"])
        loader = DataLoader(dataset, _BATCH, workers=workers, transform=recipe.eval_transform)
        names = state.about["class_names"]
        with common.data_errors(), user_errors(ValueError):
            study = _Study(model, recipe, pixels, layer, channels, top)
            written = study.draw(out, loader, names, _label_number(label, names))
        for path in written:
            click.echo(str(path))

    options = [
        common.CHECKPOINT,
        click.Argument(["image"], type=click.Path(path_type=Path)),
        click.Option(
            ["--layer"], default=None,
            help="The layer to look at, by its name in `summary`; an unknown one lists them all.",
        ),
        click.Option(
            ["--out"], type=click.Path(path_type=Path), required=True,
            help="Directory for the pictures.",
        ),
        click.Option(
            ["--channel", "channels"], type=click.IntRange(min=0), multiple=True,
            help="A map to project from; may be repeated.  [default: the strongest maps]",
        ),
        click.Option(
            ["--top"], type=click.IntRange(min=1), default=8, show_default=True,
            help="How many of the strongest maps to project from.",
        ),
        click.Option(
            ["--label"], default=None,
            help="The picture's correct class, by name.  [default: the most probable one]",
        ),
        click.Option(
            ["--invert"], is_flag=True,
            help="Swap light and dark: the digits of MNIST are light on dark.",
        ),
        *common.RUNTIME, *common.DATA,
    ]  # fmt: skip
    return click.Command(
        "visualize", callback=command, params=options,
        help="What the network makes of a picture (PNG, JPEG): first filters, feature maps, "
        "deconvnet projections, occlusion, and the patches of the test images that each map "
        "responds to most (Zeiler and Fergus 2014). Prints the files it writes.",
    )  # fmt: skip


def _check_layer(model, layer):
    from minidl.visualize.observe import layer_names

    known = layer_names(model)
    if layer not in known:
        raise UserError(f"--layer must be one of {', '.join(known)}, got {layer}")


def _label_number(label, names):
    if label is None:
        return None
    if label not in names:
        raise ValueError(f"--label must be one of {', '.join(names)}, got {label!r}")
    return names.index(label)


class _Study:
    """One picture seen by one layer: what all of the pictures start from."""

    def __init__(self, model, recipe, pixels, layer, channels, top):
        from minidl.visualize.activations import capture
        from minidl.visualize.observe import as_maps, check_channel

        self.model = model
        self.recipe = recipe
        self.layer = layer
        self.image = self._transformed(pixels)
        self.grey = self._transformed(np.full_like(pixels, 0.5))
        self.maps = as_maps(capture(model, self.image, layer)[layer], layer)[0]
        check_channel(channels, len(self.maps), layer)
        order = np.argsort(-self.maps.max(axis=(1, 2)), kind="stable")
        self.channels = list(dict.fromkeys(channels)) or [int(c) for c in order[:top]]

    def _transformed(self, pixels):
        """The network's input (C, H, W) for a picture's pixels."""
        return self.recipe.eval_transform(pixels[None], np.random.default_rng(0))[0]

    def draw(self, out, loader, class_names, label) -> list[Path]:
        """Write all pictures into the directory `out`; returns their paths."""
        from minidl.visualize import pictures
        from minidl.visualize.filters import first_filters

        # First what may fail, so that no part of the pictures is left.
        top = self._top_patches(loader)
        name, weight = first_filters(self.model)
        layer = self.layer
        paths = [out / "filters.png"]
        paths += [out / f"{kind}-{layer}.png" for kind in ("features", "deconvnet", "occlusion")]
        pictures.save_filters(paths[0], weight, name)
        pictures.save_feature_maps(paths[1], self.maps, layer)
        pictures.save_projections(paths[2], self.image, *self._projections(), layer)
        occlusion = self._occlusion(label)
        pictures.save_occlusion(paths[3], self.image, occlusion, class_names, layer)
        paths.append(out / f"top-{layer}.png")
        pictures.save_top_patches(paths[4], *top, layer)
        return paths

    def _projections(self):
        from minidl.visualize.activations import top_patches_of_maps
        from minidl.visualize.deconvnet import project

        copies = np.repeat(self.image[None], len(self.channels), axis=0)
        projected = project(self.model, copies, self.layer, self.channels)
        found = top_patches_of_maps(self.model, copies[:1], self.layer, self.channels, k=1)
        patches = {channel: patch for channel, (patch,) in found.items()}
        return dict(zip(self.channels, projected, strict=True)), patches

    def _top_patches(self, loader):
        from minidl.visualize.activations import top_patches_of_maps
        from minidl.visualize.deconvnet import project

        patches = top_patches_of_maps(self.model, loader, self.layer, self.channels, _PATCHES)
        projections = {}
        for channel, chosen in patches.items():
            images = np.stack([patch.image for patch in chosen])
            projections[channel] = project(self.model, images, self.layer, channel)
        return patches, projections

    def _occlusion(self, label):
        from minidl.visualize.occlusion import occlusion_map

        side = min(self.image.shape[1:])
        if label is None:
            label = self._most_probable()
        centre = tuple(extent // 2 for extent in self.grey.shape[1:])
        return occlusion_map(
            self.model, self.image, label, size=max(1, side // _SQUARE),
            stride=max(1, side // _STEPS), fill=self.grey[:, *centre], layer=self.layer,
            scores=self.recipe.scores, batch_size=_BATCH,
        )  # fmt: skip

    def _most_probable(self):
        from minidl.evaluation import probabilities

        return int(probabilities(self.model, self.image[None], self.recipe.scores).argmax())

"""``evaluate`` and ``predict``: what a trained network makes of images."""

from pathlib import Path

import click
import numpy as np

from kernels.command_line import UserError, user_errors
from minidl.cli import common

_SINGLE = "single"


def _weights_option() -> click.Option:
    return click.Option(
        ["--weights"], type=click.Path(path_type=Path),
        help="Instead of a checkpoint: a file of weights (.safetensors or .pth), for the network "
        "that the options describe.",
    )  # fmt: skip


def evaluate_command(architecture) -> click.Command:
    """The command ``evaluate`` of a network."""

    def command(
        backend, seed, threads, data, skip_unreadable, workers, checkpoint, weights, protocol,
        **options,
    ):  # fmt: skip
        device = common.setup(backend, seed, threads)
        _, test_set = common.load_data(data, skip_unreadable)
        if (checkpoint is None) == (weights is None):
            raise UserError("give a checkpoint, or weights by --weights")
        if weights is None:
            model, recipe, state = common.restored(architecture, checkpoint, device)
            options = state.about["options"]
            common.check_classes(state.about["class_names"], test_set)
        else:
            classes = test_set.num_classes
            model, recipe = _with_weights(architecture, weights, classes, options, device)
        common.check_images(architecture, test_set, recipe, options)
        with common.data_errors():
            result = _evaluate(model, recipe, test_set, workers, protocol)
        wrong = result.samples - result.correct
        top5 = f", top-5 {result.top5 / result.samples:.2%}" if test_set.num_classes > 5 else ""
        click.echo(
            f"{result.samples} images: accuracy {result.accuracy:.2%} ({wrong} wrong){top5}, "
            f"loss {result.loss:.4f}"
        )

    checkpoint = click.Argument(["checkpoint"], type=click.Path(path_type=Path), required=False)
    protocol = click.Option(
        ["--protocol"], default=_SINGLE, show_default=True,
        help="How often to look at an image: single, or, with full-size networks, as their papers "
        "do: ten-crop, for VGG dense too.",
    )  # fmt: skip
    return click.Command(
        "evaluate", callback=command,
        params=[
            checkpoint, *common.RUNTIME, *common.DATA, protocol, _weights_option(),
            *common.model_options(architecture, full=True),
        ],
        help="Test accuracy of a trained network: a checkpoint, which brings its own options, or "
        "--weights.",
    )  # fmt: skip


def _evaluate(model, recipe, test_set, workers, protocol):
    from minidl import evaluation
    from minidl.data import DataLoader

    if protocol == _SINGLE:
        loader = DataLoader(test_set, 64, workers=workers, transform=recipe.eval_transform)
        return evaluation.evaluate(model, loader, recipe.loss, recipe.scores)
    if protocol not in recipe.protocols:
        known = ", ".join([_SINGLE, *recipe.protocols])
        raise UserError(f"--protocol must be one of {known}, got {protocol!r}")
    chosen = recipe.protocols[protocol]
    loader = DataLoader(test_set, chosen.batch_size, workers=workers, transform=chosen.transform)
    return evaluation.evaluate_views(chosen.prepare(model), loader, recipe.scores)


def _with_weights(architecture, path, num_classes, options, device):
    with user_errors(ValueError):
        model = architecture.build(num_classes=num_classes, **options)
    common.load_weights(architecture, model, path, options)
    return model.to(device).eval(), architecture.recipe(**options)


def predict_command(architecture) -> click.Command:
    """The command ``predict`` of a network."""

    def command(backend, seed, threads, files, weights, class_names, invert, **options):
        from minidl import evaluation

        device = common.setup(backend, seed, threads)
        if weights is None:
            if class_names is not None:
                raise UserError("--class-names goes with --weights: a checkpoint has its own")
            checkpoint, *files = files
            model, recipe, state = common.restored(architecture, checkpoint, device)
            names, shape = state.about["class_names"], state.about["image_shape"]
            options = state.about["options"]
        else:
            names = _class_names(architecture, class_names, options)
            shape = (architecture.input_shape(**options)[0], None, None)
            model, recipe = _with_weights(architecture, weights, len(names), options, device)
        if not files:
            raise UserError("Missing argument 'IMAGES...'.")
        for path in files:
            pixels = common.read_image(path, shape, invert)
            inputs = recipe.eval_transform(pixels[None], np.random.default_rng(0))
            given = inputs.shape[1:]
            common.check_shape(architecture, options, given, f"{path} gives {given}")
            probabilities = evaluation.probabilities(model, inputs, recipe.scores)[0]
            click.echo(f"{path}:")
            for index in np.argsort(-probabilities, kind="stable")[:5]:
                click.echo(f"  {names[index]:<20} {probabilities[index]:8.4%}")

    options = [
        click.Argument(
            ["files"], type=click.Path(path_type=Path), nargs=-1, required=True,
            metavar="CHECKPOINT IMAGES...",
        ),
        click.Option(
            ["--invert"], is_flag=True,
            help="Swap light and dark: the digits of MNIST are light on dark.",
        ),
        _weights_option(),
        click.Option(
            ["--class-names"], type=click.Path(path_type=Path),
            help="With --weights: a text file that names the classes, one a line.",
        ),
        *common.RUNTIME,
        *common.model_options(architecture, full=True),
    ]  # fmt: skip
    return click.Command(
        "predict", callback=command, params=options,
        help="The five most probable classes of pictures (PNG, JPEG). With --weights, all "
        "arguments are images.",
    )  # fmt: skip


def _class_names(architecture, path, options):
    if path is None:
        return [str(i) for i in range(architecture.num_classes(**options))]
    with user_errors(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").splitlines()

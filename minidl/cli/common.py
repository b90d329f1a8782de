"""What the commands have in common: options, errors, data, and networks restored from files."""

from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from kernels import dispatch
from kernels.command_line import UserError, user_errors
from minidl import random


@contextmanager
def data_errors():
    """One-line errors for what can happen while a data set is read, batch by batch."""
    from minidl.data import UnreadableImage
    from minidl.data.workers import LostWorker

    with user_errors(UnreadableImage, LostWorker, OSError):
        yield


# -- options -----------------------------------------------------------------------------------

BACKEND = click.Option(
    ["--backend"], type=click.Choice(dispatch.BACKENDS), default="auto", show_default=True,
    help="Where and by what to compute: on an NVIDIA GPU (cuda), or on the CPU by the readable "
    "NumPy kernels (reference) or the fast ones (cpu, auto).",
)  # fmt: skip
RUNTIME = (
    BACKEND,
    click.Option(
        ["--seed"], type=click.IntRange(min=0), default=0, show_default=True,
        help="Start of all random numbers: the same seed gives the same run.",
    ),
    click.Option(
        ["--threads"], type=click.IntRange(min=1), default=None,
        help="Processor cores to use.  [default: all]",
    ),
)  # fmt: skip

DATA = (
    click.Option(
        ["--data"], type=click.Path(path_type=Path), default=None,
        help="Directory of a data set: IDX files (MNIST and its relatives), CIFAR-10 or CIFAR-100, "
        "or a folder of images a class.  [default: the 5,000 digits that come with minidl]",
    ),
    click.Option(
        ["--skip-unreadable"], is_flag=True,
        help="Leave out pictures that cannot be decoded, and report them, instead of stopping.",
    ),
    click.Option(
        ["--workers"], type=click.IntRange(min=0), default=0, show_default=True,
        help="Processes that decode and transform images; 0: a thread beside the training.",
    ),
)  # fmt: skip

CHECKPOINT = click.Argument(["checkpoint"], type=click.Path(path_type=Path))


def setup(backend: str, seed: int, threads: int | None) -> str:
    """Carry out the RUNTIME options; returns the device that networks are to be moved to."""
    with user_errors(ValueError, RuntimeError):
        dispatch.use(backend)
        random.manual_seed(seed)
        if threads is not None:
            dispatch.set_num_threads(threads)
    return "cuda" if backend == "cuda" else "cpu"


def model_options(architecture, full: bool) -> list[click.Option]:
    """The network's own options; `full` says which of its two sizes a command takes by default."""
    options = list(architecture.options)
    if architecture.has_small:
        options.append(
            click.Option(
                ["--full/--small"], default=full, show_default=True,
                help="The network of the paper, or a small form of it that suits the digits.",
            )
        )  # fmt: skip
    return options


# -- data ----------------------------------------------------------------------------------------


def load_data(directory, skip_unreadable: bool = False):
    """(train, test) from a directory, or the bundled digits."""
    from minidl import data

    if directory is None:
        return data.bundled_digits()
    with user_errors(ValueError, OSError):
        return data.open_dataset(directory, "skip" if skip_unreadable else "raise")


def check_images(architecture, dataset, recipe, options) -> None:
    """One-line error unless the data set, transformed, has the shape that the network takes."""
    with user_errors(ValueError, OSError):
        image = _first_image(dataset)
        given = recipe.eval_transform(image, np.random.default_rng(0)).shape[1:]
    source = f"the data gives {given} (from {dataset.image_shape})"
    check_shape(architecture, options, given, source)


def check_shape(architecture, options, given, what) -> None:
    """One-line error, ending in `what`, unless the network takes images of shape `given`."""
    shape = architecture.input_shape(**options)
    if given != shape:
        raise UserError(f"{architecture.name} takes images of shape {shape}, {what}")


def _first_image(dataset):
    """A batch of the first image that can be read."""
    for index in range(len(dataset)):
        images, _ = dataset.batch(np.array([index]))
        if len(images):
            return images
    raise UserError("the data set is empty, or none of its images can be read")


def check_classes(class_names, dataset) -> None:
    """One-line error unless the data set has the classes that the network knows, in its order."""
    if dataset.num_classes != len(class_names):
        raise UserError(
            f"the checkpoint knows {len(class_names)} classes, the data has {dataset.num_classes}"
        )
    for number, (known, given) in enumerate(zip(class_names, dataset.class_names, strict=True)):
        if known != given:
            raise UserError(
                f"class {number} of the checkpoint is {known!r}, that of the data {given!r}"
            )


# -- networks from files -------------------------------------------------------------------------


def load_checkpoint(architecture, path):
    """The checkpoint at `path`, which must be one of this architecture."""
    from minidl import checkpoint

    with user_errors(ValueError, OSError):
        state = checkpoint.load(path)
    name = state.about.get("architecture")
    if name != architecture.name:
        raise UserError(f"{path}: a checkpoint of {name!r}, expected {architecture.name!r}")
    wrong = _damaged_entry(architecture, state.about)
    if wrong is not None:
        raise UserError(f"{path}: damaged checkpoint: {wrong} is {state.about.get(wrong)!r}")
    return state


def _damaged_entry(architecture, about) -> str | None:
    """The entry of what a checkpoint says of itself that no run can have written, or None."""
    known = {option.name for option in model_options(architecture, full=True)}
    options, names = about.get("options"), about.get("class_names")
    shape = about.get("image_shape")
    if not isinstance(options, dict) or not options.keys() <= known:
        return "options"
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return "class_names"
    if not isinstance(shape, list) or len(shape) != 3 or not is_count(shape[0]):
        return "image_shape"
    if not all(extent is None or is_count(extent) for extent in shape[1:]):
        return "image_shape"
    return None


def is_count(value) -> bool:
    """Whether a value from JSON is a positive integer."""
    return type(value) is int and value > 0


def check_unchanged(stored) -> None:
    """One-line error where an option of the command line contradicts one of a checkpoint's."""
    context = click.get_current_context()
    for name, value in stored.items():
        given = context.params.get(name)
        asked = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if asked and given != value:
            raise UserError(
                f"the checkpoint has {name}={value}, the command line {name}={given}: leave that "
                "option out, a checkpoint brings its own"
            )


def restored(architecture, path, device="cpu"):
    """(model on `device`, in evaluation mode; recipe; what the checkpoint says of itself)."""
    state = load_checkpoint(architecture, path)
    check_unchanged(state.about["options"])
    with user_errors(ValueError, KeyError, TypeError, prefix=f"{path}: "):
        options = state.about["options"]
        model = architecture.build(num_classes=len(state.about["class_names"]), **options)
        model.load_state_dict(state.model)
    return model.to(device).eval(), architecture.recipe(**options), state


def load_weights(architecture, model, path, options) -> None:
    """Fill `model` from a file of weights, under public names or the network's own."""
    from minidl import weights

    with user_errors(ValueError, OSError):
        state = weights.read(path)
    with user_errors(ValueError, prefix=f"{path}: "):
        names = _names(architecture, model, state, options)
        weights.load_into(model, state, names, architecture.left_out(**options))


def _names(architecture, model, state, options):
    """The mapping from the network's names to the file's; None where they are the same.

    ValueError where the file holds public weights, or may hold them, and the form has none.
    """
    from minidl.architecture import SameNames

    if architecture.public_names is None:
        return None
    own = model.state_dict().keys()
    try:
        names = architecture.public_names(**options)
    except SameNames:
        raise
    except ValueError:
        if own <= state.keys():
            return None
        raise
    # A file that is almost right should be told what it lacks in its own terms.
    has_most = 2 * len(own & state.keys()) > len(own)
    return None if has_most else names


def read_image(path, shape, invert=False) -> np.ndarray:
    """A picture as float32 (C, H, W) in [0, 1]: of `shape`, or of its own size where that is open.

    `shape` is the image_shape of a data set, whose images the network was trained on.
    """
    from minidl import data
    from minidl.data import transforms

    with user_errors(OSError, ValueError):
        image = data.read_image(path)
    if shape[0] == 1:
        image = transforms.grey(image)
    if None not in shape:
        image = transforms.Resize(tuple(shape[1:]))([image], None)[0]
    return 1 - image if invert else image

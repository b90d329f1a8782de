"""Any data set that minidl can read, from its directory."""

from pathlib import Path

from minidl.data.cifar import cifar10, cifar100, has_cifar10, has_cifar100
from minidl.data.dataset import split_one_in_five
from minidl.data.image_folder import ImageFolder, class_folders, has_pictures
from minidl.data.mnist import has_mnist, mnist

_UNDERSTOOD = (
    "the IDX files of MNIST or a set like it; CIFAR-10 or CIFAR-100, as Python pickles or binary; "
    "train/ with val/ or test/, each with a sub-folder of pictures a class; or two and more such "
    "sub-folders alone"
)
_TEST_FOLDERS = ("val", "test")
_NAMED = 8  # how many entries of an unknown directory the error lists


def open_dataset(directory, on_error: str = "raise"):
    """(train, test) of the data set in `directory`, whichever kind it is.

    Recognised are the files of `mnist`, `cifar10` and `cifar100` (fine labels), ``train/`` with
    ``val/`` or ``test/`` (the former where there are both), and class folders of pictures, of
    which one in five is held out by `split_one_in_five`. `on_error` is ImageFolder's. Raises
    FileNotFoundError where there is no such directory or files are missing; ValueError for damaged
    files, and where none or several kinds are recognised.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    kinds = {"MNIST": (has_mnist, mnist), "CIFAR-10": (has_cifar10, cifar10),
             "CIFAR-100": (has_cifar100, cifar100)}  # fmt: skip
    found = [title for title, (recognises, _) in kinds.items() if recognises(directory)]
    if len(found) > 1:
        raise ValueError(f"{directory}: holds {' and '.join(found)}, name the directory of one")
    if found:
        return kinds[found[0]][1](directory)
    folders = class_folders(directory)
    test = next((name for name in _TEST_FOLDERS if name in folders), None)
    if "train" in folders and test is not None:
        return _two_folders(directory / "train", directory / test, on_error)
    if len(folders) > 1 and any(has_pictures(directory / name) for name in folders):
        return _split_folder(directory, on_error)
    raise ValueError(
        f"{directory}: not a data set that minidl knows. It reads {_UNDERSTOOD}. Found: "
        f"{_content(directory)}"
    )


def _two_folders(train_path, test_path, on_error):
    train, test = ImageFolder(train_path, on_error), ImageFolder(test_path, on_error)
    if train.class_names != test.class_names:
        different = sorted(set(train.class_names) ^ set(test.class_names))
        raise ValueError(
            f"{train_path} and {test_path} have different classes: {', '.join(different[:_NAMED])}"
        )
    return train, test


def _split_folder(directory, on_error):
    train, test = split_one_in_five(ImageFolder(directory, on_error))
    if not len(test):
        raise ValueError(f"{directory}: no class has the five pictures that a split needs")
    return train, test


def _content(directory):
    names = sorted(p.name + "/" * p.is_dir() for p in directory.iterdir())
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) or "nothing") + more

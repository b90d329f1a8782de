"""Datasets, transforms and the loader; the bundled digits."""

from minidl.data import transforms
from minidl.data.cifar import cifar10, cifar100
from minidl.data.dataset import ArrayDataset, split_one_in_five
from minidl.data.idx import read_idx
from minidl.data.image_folder import ImageFolder, UnreadableImage, read_image
from minidl.data.loader import DataLoader, shard_slice
from minidl.data.mnist import bundled_digits, mnist
from minidl.data.sources import open_dataset

__all__ = [
    "ArrayDataset",
    "DataLoader",
    "ImageFolder",
    "UnreadableImage",
    "bundled_digits",
    "cifar10",
    "cifar100",
    "mnist",
    "open_dataset",
    "read_idx",
    "read_image",
    "shard_slice",
    "split_one_in_five",
    "transforms",
]

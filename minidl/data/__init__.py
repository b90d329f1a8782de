"""Datasets, transforms and the loader; the bundled digits."""

from minidl.data import transforms
from minidl.data.dataset import ArrayDataset
from minidl.data.idx import read_idx
from minidl.data.loader import DataLoader
from minidl.data.mnist import bundled_digits, mnist

__all__ = ["ArrayDataset", "DataLoader", "bundled_digits", "mnist", "read_idx", "transforms"]

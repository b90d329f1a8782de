"""Transforms of batches: called as ``transform(images, rng)``, with all randomness from `rng`.

Images are a float32 batch (N, C, H, W) or a list of float32 arrays (C, H, W) of differing sizes,
and stay float32. Resize to a pair, the crops and TenCrop make an equal-sized batch of a list; the
others keep the form they get (RandomResize always gives a list). Nothing changes its input.
"""

from minidl.data.transforms.affine import RandomAffine, sample_affine
from minidl.data.transforms.basic import (
    Compose,
    Mirrored,
    Normalize,
    Pad,
    RandomHorizontalFlip,
    ToRGB,
)
from minidl.data.transforms.color import ColorJitter, PCALighting, covariance_eigen, grey
from minidl.data.transforms.crop import CenterCrop, RandomCrop, RandomResizedCrop, TenCrop
from minidl.data.transforms.resize import RandomResize, Resize

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "Mirrored",
    "Normalize",
    "PCALighting",
    "Pad",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomResize",
    "RandomResizedCrop",
    "Resize",
    "TenCrop",
    "ToRGB",
    "covariance_eigen",
    "grey",
    "sample_affine",
]

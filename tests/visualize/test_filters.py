"""Tiles, scales, and the choice of the first filters."""

import numpy as np
import pytest

from minidl import nn
from minidl.visualize import filters

RNG = np.random.default_rng(4)


def test_scales():
    image = np.array([[-2.0, 0.0], [1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(filters.unit_range(image), [[0, 0.5], [0.75, 1]])
    np.testing.assert_array_equal(filters.around_grey(image / 2), [[0, 0.5], [0.75, 1]])
    flat = np.full((2, 2), 3.0)
    np.testing.assert_array_equal(filters.unit_range(flat), np.zeros((2, 2)))
    np.testing.assert_array_equal(filters.around_grey(0 * flat), np.full((2, 2), 0.5))


def test_tile_places_each_picture():
    pictures = [np.full((2, 3), i / 10) for i in range(5)]
    sheet = filters.tile(pictures, gap=1)
    assert sheet.shape == (2 * 3 - 1, 3 * 4 - 1)
    for i, picture in enumerate(pictures):
        top, left = i // 3 * 3, i % 3 * 4
        np.testing.assert_array_equal(sheet[top : top + 2, left : left + 3], picture)
    assert (sheet[2] == 1).all() and (sheet[:, 3] == 1).all() and (sheet[3:, 8:] == 1).all()


def test_tile_centres_smaller_pictures_and_keeps_colours():
    sheet = filters.tile([np.zeros((1, 1, 3)), np.zeros((3, 5, 3))], gap=2, background=0.5)
    assert sheet.shape == (3, 12, 3)
    dark = np.argwhere((sheet[:, :5] == 0).all(axis=2))
    assert dark.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="at least one"):
        filters.tile([])
    with pytest.raises(ValueError, match="grey or all be coloured"):
        filters.tile([np.zeros((2, 2)), np.zeros((2, 2, 3))])


def test_filter_pictures():
    colour = RNG.standard_normal((4, 3, 5, 5))
    pictures = filters.filter_pictures(colour)
    assert len(pictures) == 4 and pictures[0].shape == (5, 5, 3)
    assert all(p.min() == 0 and p.max() == 1 for p in pictures)
    np.testing.assert_allclose(
        pictures[1][..., 2] * np.ptp(colour[1]) + colour[1].min(), colour[1, 2]
    )
    planes = filters.filter_pictures(RNG.standard_normal((4, 2, 5, 5)))
    assert len(planes) == 8 and all(p.shape == (5, 5) and p.max() == 1 for p in planes)


def test_maps_of_one_element_share_their_range():
    values = np.array([1.0, 3.0, 2.0]).reshape(3, 1, 1)
    assert [p.item() for p in filters.map_pictures(values)] == [0, 1, 0.5]
    assert all(p.max() == 1 for p in filters.map_pictures(RNG.random((3, 4, 4))))


def test_first_filters():
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(3, 2, 5)), nn.Conv2d(2, 2, 3))
    name, weight = filters.first_filters(model)
    assert name == "1.0" and weight.shape == (2, 3, 5, 5)
    with pytest.raises(ValueError, match="convolution"):
        filters.first_filters(nn.Linear(2, 2))

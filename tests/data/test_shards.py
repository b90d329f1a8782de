"""A loader's shards: together they are the batches of one loader."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import data


def numbered(count):
    """Images whose one pixel is their number."""
    pixels = np.arange(count, dtype=np.float32)[:, None, None, None]
    return data.ArrayDataset(pixels, np.arange(count) % 3, 3)


class Unreadable(data.ArrayDataset):
    """Of the images some cannot be read."""

    lost = ()

    def batch(self, indices):
        indices = np.asarray(indices)
        return super().batch(indices[~np.isin(indices, self.lost)])


def batches(dataset, batch_size, shard, **options):
    """The numbers in every batch that count, and whether there was a stand-in."""
    loader = data.DataLoader(dataset, batch_size, shuffle=True, seed=3, shard=shard, **options)
    return [
        (loader.position, images[:, 0, 0, 0].astype(int).tolist() if loader.counted else [])
        for images, _ in loader
    ]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_the_parts_are_the_batches(count, size, more, draw):
    lost = draw.draw(st.sets(st.integers(0, count - 1)))
    dataset = numbered(count)
    dataset = Unreadable(dataset.images, dataset.labels, 3)
    dataset.lost = sorted(lost)
    whole = batches(dataset, size + more, (0, 1), prefetch=0)
    parts = [batches(dataset, size + more, (rank, size), prefetch=0) for rank in range(size)]
    together = [
        (positions[0][0], sum((numbers for _, numbers in positions), []))
        for positions in zip(*parts, strict=True)
    ]
    assert together == whole
    for part in zip(*parts, strict=True):
        assert len({position for position, _ in part}) == 1
        if not lost:
            sizes = [len(numbers) for _, numbers in part]
            assert max(sizes) - min(sizes) <= 1


def test_an_empty_part_is_given_a_sample_that_does_not_count():
    loader = data.DataLoader(numbered(5), 4, shard=(0, 4), prefetch=0)
    seen = [(images[:, 0, 0, 0].tolist(), loader.counted, loader.whole) for images, _ in loader]
    assert seen == [([0.0], True, 4), ([4.0], False, 1)]
    last = data.DataLoader(numbered(5), 4, shard=(3, 4), prefetch=2)
    assert [last.counted for _ in last] == [True, True]


class Noise:
    """A transform that shows what numbers it was given."""

    def __call__(self, images, rng):
        return images * 0 + rng.random(images.shape).astype(np.float32)


def test_ranks_draw_numbers_of_their_own_whatever_the_workers():
    def numbers(shard, **options):
        loader = data.DataLoader(numbered(8), 4, transform=Noise(), shard=shard, **options)
        return [images.ravel().tolist() for images, _ in loader]

    first, second = numbers((0, 2)), numbers((1, 2))
    assert first != second and first == numbers((0, 2)) == numbers((0, 2), workers=1)


def test_bad_shards():
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="shard must be"):
            data.DataLoader(numbered(8), 4, shard=shard)
    with pytest.raises(ValueError, match="batch_size must be at least 3, one a rank, got 2"):
        data.DataLoader(numbered(8), 2, shard=(0, 3))


def test_slices_cover_everything():
    for count in range(12):
        for size in range(1, 6):
            parts = [np.arange(count)[data.shard_slice(count, rank, size)] for rank in range(size)]
            np.testing.assert_array_equal(np.concatenate(parts), np.arange(count))

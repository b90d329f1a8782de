"""Datasets: objects with a length whose items are (image, label)."""

import numpy as np

_SPLIT_SEED = 1998
_TEST_FRACTION = 5  # one item in five is held out


class ArrayDataset:
    """Images and labels held in memory.

    `images`: uint8 (N, H, W) or (N, C, H, W), or float32 already in [0, 1]; `labels`: integers (N,)
    in [0, num_classes). An item is (float32 (C, H, W) in [0, 1], int). Raises ValueError where
    shapes, counts or labels do not fit, TypeError for other dtypes.
    """

    def __init__(self, images, labels, num_classes: int | None = None, class_names=None):
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim == 3:
            images = images[:, None]
        if images.ndim != 4:
            raise ValueError(f"images must be (N, H, W) or (N, C, H, W), got {images.shape}")
        if images.dtype not in (np.uint8, np.float32):
            raise TypeError(f"images must be uint8 or float32, got {images.dtype}")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must have shape {images.shape[:1]}, got {labels.shape}")
        self.images = images
        self.labels = labels.astype(np.int64)
        largest = int(labels.max()) if labels.size else -1
        self.num_classes = largest + 1 if num_classes is None else num_classes
        if labels.size and not (labels.min() >= 0 and largest < self.num_classes):
            raise ValueError(
                f"labels must lie in [0, {self.num_classes}), got {labels.min()} to {largest}"
            )
        self.class_names = list(class_names or map(str, range(self.num_classes)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        images, labels = self.batch(np.asarray([index]))
        return images[0], int(labels[0])

    def batch(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """(float32 (N, C, H, W), int64 (N,)) of several items at once."""
        images = self.images[indices]
        if images.dtype == np.uint8:
            images = images * np.float32(1 / 255)
        return images, self.labels[indices]

    def subset(self, indices) -> "ArrayDataset":
        """The items at `indices` as a dataset of the same classes."""
        return ArrayDataset(
            self.images[indices], self.labels[indices], self.num_classes, self.class_names
        )


def split_one_in_five(dataset):
    """(train, test): one item in five of every class, rounded down, is held out for the test.

    The split is fixed: it depends on no seed of the user's, only on the labels. `dataset` has
    `labels`, `num_classes` and `subset`.
    """
    order = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(len(dataset))
    test = []
    for label in range(dataset.num_classes):
        members = order[dataset.labels[order] == label]
        test.append(members[: len(members) // _TEST_FRACTION])
    test = np.sort(np.concatenate(test))
    train = np.setdiff1d(np.arange(len(dataset)), test)
    return dataset.subset(train), dataset.subset(test)

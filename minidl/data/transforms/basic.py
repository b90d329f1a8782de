"""Transforms that leave the geometry alone: composition, borders, values, channels, mirrors."""

import numpy as np

from minidl.data.transforms.images import as_list, like, stack


class Compose:
    """Several transforms, one after the other."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, images, rng):
        for transform in self.transforms:
            images = transform(images, rng)
        return images


class Pad:
    """`padding` pixels of `value` on every side. ValueError for a negative padding."""

    def __init__(self, padding: int, value: float = 0.0):
        if padding < 0:
            raise ValueError(f"padding must not be negative, got {padding}")
        self.padding = padding
        self.value = value

    def __call__(self, images, rng):
        if isinstance(images, list):
            return [self(image[None], rng)[0] for image in images]
        p = self.padding
        n, c, h, w = images.shape
        padded = np.full((n, c, h + 2 * p, w + 2 * p), self.value, images.dtype)
        padded[:, :, p : p + h, p : p + w] = images
        return padded


class Normalize:
    """(x - mean) / std, with one number or one a channel.

    Takes the (N, 10, C, H, W) of TenCrop too. Raises ValueError for a std of 0 or below, and for
    images of another number of channels.
    """

    def __init__(self, mean, std):
        self.mean = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        std = np.asarray(std, np.float32).reshape(-1, 1, 1)
        if not (std > 0).all():
            raise ValueError(f"std must be above 0, got {std.ravel().tolist()}")
        self.scale = 1 / std

    def __call__(self, images, rng):
        if isinstance(images, list):
            return [self(image, rng) for image in images]
        channels = max(len(self.mean), len(self.scale))
        if channels not in (1, images.shape[-3]):
            raise ValueError(
                f"images must have {channels} channels, one for each mean and std, got shape "
                f"{images.shape}"
            )
        result = images - self.mean
        result *= self.scale
        return result


class ToRGB:
    """One channel repeated to three; three stay. ValueError for other numbers of channels."""

    def __call__(self, images, rng):
        return like(images, [self._convert(image) for image in as_list(images)])

    def _convert(self, image):
        if len(image) not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {len(image)}")
        return image if len(image) == 3 else np.repeat(image, 3, axis=0)


class RandomHorizontalFlip:
    """Each image mirrored left to right with probability `p`, else as it is."""

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {p}")
        self.p = p

    def __call__(self, images, rng):
        chosen = rng.random(len(images)) < self.p
        pairs = zip(as_list(images), chosen, strict=True)
        return like(images, [image[:, :, ::-1] if mirrored else image for image, mirrored in pairs])


class Mirrored:
    """Two views of each image, itself and its mirror image: (N, C, H, W) -> (N, 2, C, H, W).

    Takes a list whose images are of one size, too; ValueError for differing sizes.
    """

    def __call__(self, images, rng):
        images = stack(as_list(images))
        return np.stack([images, images[..., ::-1]], axis=1)

"""Transforms of batches: called as ``transform(images, rng)`` on float32 (N, C, H, W)."""

import numpy as np


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
        p = self.padding
        n, c, h, w = images.shape
        padded = np.full((n, c, h + 2 * p, w + 2 * p), self.value, images.dtype)
        padded[:, :, p : p + h, p : p + w] = images
        return padded


class Normalize:
    """(x - mean) / std, with one number or one a channel. ValueError for a std of 0 or below."""

    def __init__(self, mean, std):
        self.mean = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        std = np.asarray(std, np.float32).reshape(-1, 1, 1)
        if not (std > 0).all():
            raise ValueError(f"std must be above 0, got {std.ravel().tolist()}")
        self.scale = 1 / std

    def __call__(self, images, rng):
        return (images - self.mean) * self.scale


class RandomAffine:
    """Rotate, scale and shift each image at random about its centre; pixels from outside are 0.

    `degrees`: angle in +-degrees; `translate`: shifts in +- this fraction of height and width;
    `scale`: (lowest, highest) factor; `shear`: horizontal shear in +-degrees. All drawn uniformly,
    once an image. Bilinear. Raises ValueError for a negative range or a scale not above 0.
    """

    def __init__(self, degrees=0.0, translate=0.0, scale=(1.0, 1.0), shear=0.0):
        for name, value in (("degrees", degrees), ("translate", translate), ("shear", shear)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be 0 < lowest <= highest, got {scale}")
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.shear = shear

    def __call__(self, images, rng):
        n, _, h, w = images.shape
        angle, shear = np.radians(
            rng.uniform(-1, 1, (2, n)) * [[self.degrees], [self.shear]]
        )
        factor = rng.uniform(*self.scale, n)
        shift = rng.uniform(-1, 1, (2, n)) * self.translate * [[h], [w]]
        # Each output pixel reads the input at the inverse map of its place.
        cos, sin, slope = np.cos(angle) / factor, np.sin(angle) / factor, np.tan(shear)
        inverse = np.array([[cos, sin], [-sin - slope * cos, cos - slope * sin]])
        return sample_affine(images, inverse.astype(np.float32), shift.astype(np.float32))


def sample_affine(images, inverse, shift):
    """Bilinear samples of images (N, C, H, W) at inverse (p - centre - shift) + centre.

    `inverse` (2, 2, N) and `shift` (2, N) are in (row, column) order; outside is 0.
    """
    n, c, h, w = images.shape
    middle = (h - 1) / 2, (w - 1) / 2
    rows = (np.arange(h, dtype=np.float32) - middle[0])[:, None] - shift[0][:, None, None]
    columns = (np.arange(w, dtype=np.float32) - middle[1])[None, :] - shift[1][:, None, None]
    m = inverse[..., None, None]
    r = m[0, 0] * rows + m[0, 1] * columns + middle[0]
    q = m[1, 0] * rows + m[1, 1] * columns + middle[1]
    # A border of zeros, one pixel before and two after, onto which all further outside is clipped.
    bordered = np.zeros((n, c, h + 3, w + 3), images.dtype)
    bordered[:, :, 1 : h + 1, 1 : w + 1] = images
    r = np.clip(r + 1, 0, h + 1)
    q = np.clip(q + 1, 0, w + 1)
    r0, q0 = np.floor(r), np.floor(q)
    fr, fq = (r - r0)[:, None], (q - q0)[:, None]
    flat = bordered.reshape(n, c, -1)
    base = (r0 * (w + 3) + q0).astype(np.int32).reshape(n, 1, -1)

    def tap(offset):
        return np.take_along_axis(flat, base + offset, axis=2).reshape(n, c, h, w)

    upper = tap(0) * (1 - fq) + tap(1) * fq
    lower = tap(w + 3) * (1 - fq) + tap(w + 4) * fq
    return upper * (1 - fr) + lower * fr

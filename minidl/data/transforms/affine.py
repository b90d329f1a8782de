"""Rotation, scale, shift and shear at random, by bilinear sampling."""

import numpy as np

from minidl.data.transforms.images import as_list


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
        n = len(images)
        sizes = np.array([image.shape[1:] for image in as_list(images)]).reshape(n, 2).T
        angle, shear = np.radians(
            rng.uniform(-1, 1, (2, n)) * [[self.degrees], [self.shear]]
        )
        factor = rng.uniform(*self.scale, n)
        shift = rng.uniform(-1, 1, (2, n)) * self.translate * sizes
        # Each output pixel reads the input at the inverse map of its place.
        cos, sin, slope = np.cos(angle) / factor, np.sin(angle) / factor, np.tan(shear)
        inverse = np.array([[cos, sin], [-sin - slope * cos, cos - slope * sin]])
        inverse, shift = inverse.astype(np.float32), shift.astype(np.float32)
        if isinstance(images, list):
            return [sample_affine(image[None], inverse[:, :, i : i + 1], shift[:, i : i + 1])[0]
                    for i, image in enumerate(images)]  # fmt: skip
        return sample_affine(images, inverse, shift)


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

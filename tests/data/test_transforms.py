"""Transforms against their definitions, on arrays and on lists of images of differing sizes."""

import colorsys
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import data
from minidl.data import transforms
from minidl.data.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    Mirrored,
    Normalize,
    Pad,
    PCALighting,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResize,
    RandomResizedCrop,
    Resize,
    TenCrop,
    ToRGB,
    covariance_eigen,
    sample_affine,
)
from minidl.data.transforms.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grey,
)

IMAGES = np.random.default_rng(0).random((5, 2, 7, 7), np.float32)
RNG = np.random.default_rng


def test_pad_and_normalize():
    y = Compose(Pad(1), Normalize([0.5, 0.25], [2, 4]))(IMAGES, RNG(0))
    expected = np.pad(IMAGES, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = (expected - np.reshape([0.5, 0.25], (2, 1, 1))) / np.reshape([2, 4], (2, 1, 1))
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert y.dtype == np.float32


def test_affine_identity_and_exact_cases():
    np.testing.assert_allclose(RandomAffine()(IMAGES, RNG(0)), IMAGES, atol=1e-5)
    n = len(IMAGES)
    identity = np.repeat(np.eye(2, dtype=np.float32)[:, :, None], n, 2)
    shift = np.repeat(np.array([[2], [-1]], np.float32), n, 1)
    moved = sample_affine(IMAGES, identity, shift)
    expected = np.zeros_like(IMAGES)
    expected[:, :, 2:, :-1] = IMAGES[:, :, :-2, 1:]
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    quarter = np.repeat(np.array([[0, 1], [-1, 0]], np.float32)[:, :, None], n, 2)
    turned = sample_affine(IMAGES, quarter, np.zeros((2, n), np.float32))
    np.testing.assert_allclose(turned, np.rot90(IMAGES, 1, (2, 3)), atol=1e-5)


def test_affine_against_torch():
    torch = pytest.importorskip("torch")
    draw = RNG(1)
    inverse = (np.eye(2)[:, :, None] + draw.uniform(-0.4, 0.4, (2, 2, 5))).astype(np.float32)
    shift = draw.uniform(-1.5, 1.5, (2, 5)).astype(np.float32)
    offset = -np.einsum("rcn,cn->rn", inverse, shift) * 2 / 7
    # Theirs is in (x, y) order and in units of half the image.
    theta = np.concatenate([inverse[::-1, ::-1], offset[::-1, None]], axis=1).transpose(2, 0, 1)
    grid = torch.nn.functional.affine_grid(
        torch.tensor(theta.copy(), dtype=torch.float32), IMAGES.shape, align_corners=False
    )
    theirs = torch.nn.functional.grid_sample(torch.tensor(IMAGES), grid, align_corners=False)
    np.testing.assert_allclose(sample_affine(IMAGES, inverse, shift), theirs.numpy(), atol=2e-3)


def test_affine_is_reproducible_and_checked():
    jitter = RandomAffine(20, 0.1, (0.8, 1.2), 5)
    a, b = (jitter(IMAGES, RNG(3)) for _ in range(2))
    assert (a == b).all() and a.dtype == np.float32 and (a != IMAGES).any()
    for bad in ({"degrees": -1}, {"translate": -0.1}, {"scale": (0, 1)}, {"shear": -2}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RandomAffine(**bad)
    with pytest.raises(ValueError, match="std"):
        Normalize(0, 0)


# -- what all have in common -----------------------------------------------------------------------

SIZES = [(9, 12), (8, 8), (17, 10)]
ALL = {
    "Pad": Pad(2),
    "Normalize": Normalize([0.5, 0.4, 0.3], 0.25),
    "RandomAffine": RandomAffine(20, 0.1, (0.8, 1.2), 5),
    "ToRGB": ToRGB(),
    "RandomHorizontalFlip": RandomHorizontalFlip(),
    "Resize shorter": Resize(6),
    "Resize": Resize((5, 7)),
    "RandomResize": RandomResize(6, 11),
    "CenterCrop": CenterCrop((5, 7)),
    "RandomCrop": RandomCrop((5, 7), padding=1),
    "RandomResizedCrop": RandomResizedCrop((5, 7)),
    "TenCrop": TenCrop((5, 7)),
    "ColorJitter": ColorJitter(0.4, 0.4, 0.4, 0.1),
    "PCALighting": PCALighting(),
}
FIXED = {"Resize", "CenterCrop", "RandomCrop", "RandomResizedCrop", "TenCrop"}


def pictures(sizes=SIZES, channels=3, seed=0):
    draw = RNG(seed)
    return [draw.random((channels, *size), np.float32) for size in sizes]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("form", [list, np.stack])
def test_form_dtype_and_determinism(name, form):
    transform = ALL[name]
    images = pictures() if form is list else np.stack(pictures([(9, 12)] * 3))
    before = [image.copy() for image in images]
    once, again, other = (transform(images, RNG(seed)) for seed in (5, 5, 6))
    assert all((a == b).all() for a, b in zip(images, before, strict=True))
    assert all((a == b).all() for a, b in zip(once, again, strict=True))
    restored = pickle.loads(pickle.dumps(transform))(images, RNG(5))
    assert all((a == b).all() for a, b in zip(once, restored, strict=True))
    random = {"RandomAffine", "RandomHorizontalFlip", "RandomResize", "RandomCrop",
              "RandomResizedCrop", "ColorJitter", "PCALighting"}  # fmt: skip
    if name in random:
        assert any(a.shape != b.shape or (a != b).any() for a, b in zip(once, other, strict=True))
    assert len(once) == 3 and all(image.dtype == np.float32 for image in once)
    if name in FIXED:
        shape = (10, 3, 5, 7) if name == "TenCrop" else (3, 5, 7)
        assert isinstance(once, np.ndarray) and once.shape[1:] == shape
    elif name == "RandomResize":
        assert isinstance(once, list)
    else:
        assert isinstance(once, type(images))


def test_every_transform_is_covered_here():
    listed = {type(transform).__name__ for transform in ALL.values()}
    assert listed == {n for n in transforms.__all__ if n[0].isupper()} - {"Compose", "Mirrored"}


@pytest.mark.parametrize("name", ["Pad", "Normalize", "Resize shorter", "ColorJitter"])
def test_lists_and_arrays_agree(name):
    images = pictures([(9, 12)] * 3)
    a, b = ALL[name](images, RNG(1)), ALL[name](np.stack(images), RNG(1))
    np.testing.assert_array_equal(np.stack(a), b)
    np.testing.assert_allclose(
        np.stack(ALL["RandomAffine"](images, RNG(1))),
        ALL["RandomAffine"](np.stack(images), RNG(1)), atol=1e-6,
    )  # fmt: skip


def test_wrong_images():
    for bad, kind in (("text", TypeError), ([np.zeros((2, 2))], ValueError),
                      (np.zeros((2, 2, 2)), ValueError)):  # fmt: skip
        with pytest.raises(kind, match="image"):
            Resize(3)(bad, RNG(0))
    with pytest.raises(ValueError, match="at least one image"):
        CenterCrop(3)([], RNG(0))
    mixed = pictures([(4, 4)]) + pictures([(4, 4)], channels=1)
    with pytest.raises(ValueError, match="ToRGB"):
        CenterCrop(3)(mixed, RNG(0))
    assert CenterCrop(3)(ToRGB()(mixed, RNG(0)), RNG(0)).shape == (2, 3, 3, 3)
    assert Resize(3)(np.zeros((0, 3, 4, 4), np.float32), RNG(0)).shape[0] == 0


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Resize(0), "size"),
        (lambda: Resize((3, 4, 5)), "size"),
        (lambda: CenterCrop((3, 2.5)), "size"),
        (lambda: CenterCrop(np.float32(3)), "size"),
        (lambda: RandomResize(5, 4), "low must"),
        (lambda: RandomResize(0, 4), "low, high"),
        (lambda: RandomCrop(3, padding=-1), "padding"),
        (lambda: RandomResizedCrop(3, scale=(0, 1)), "scale"),
        (lambda: RandomResizedCrop(3, scale=(0.5, 1.5)), "scale"),
        (lambda: RandomResizedCrop(3, ratio=(2, 1)), "ratio"),
        (lambda: RandomHorizontalFlip(1.5), "p must"),
        (lambda: ColorJitter(brightness=-1), "brightness"),
        (lambda: ColorJitter(contrast=(2, 1)), "contrast"),
        (lambda: ColorJitter(saturation=math.nan), "saturation"),
        (lambda: ColorJitter(hue=0.6), "hue"),
        (lambda: PCALighting(-1), "std"),
        (lambda: PCALighting(eigenvalues=[1, 2]), "eigenvalues"),
    ],
)
def test_wrong_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- resize ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resize(channels):
    images = pictures(channels=channels)
    shapes = [image.shape[1:] for image in Resize(6)(images, RNG(0))]
    assert shapes == [(6, 8), (6, 6), (10, 6)]
    for image in Resize((9, 12))(images[:1], RNG(0)):
        np.testing.assert_array_equal(image, images[0])  # its own size already
    # A whole number of pixels a pixel: halving by the triangle filter weighs 1, 3, 3, 1 eighths.
    halved = Resize((8, 5))([pictures([(8, 10)], channels)[0]], RNG(0))[0]
    rows = pictures([(8, 10)], channels)[0]
    middle = (rows[..., 1:-2:2] + 3 * rows[..., 2:-1:2] + 3 * rows[..., 3::2][..., :4]) / 8
    expected = middle[..., :3] + rows[..., 4::2] / 8
    np.testing.assert_allclose(halved[..., 1:4], expected, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_resize_keeps_within_the_values(h, w, height, width):
    image = pictures([(h, w)])[0]
    resized = Resize((height, width))([image], RNG(0))
    assert resized.shape == (1, 3, height, width)
    low, high = image.min((1, 2)), image.max((1, 2))
    assert (resized[0].min((1, 2)) >= low - 1e-6).all()
    assert (resized[0].max((1, 2)) <= high + 1e-6).all()
    flat = np.full((1, 1, h, w), 0.3, np.float32)
    np.testing.assert_allclose(Resize((height, width))(flat, RNG(0)), 0.3, rtol=1e-6)


def test_resize_against_torch():
    torch = pytest.importorskip("torch")
    image = pictures([(37, 23)])[0]
    for size in ((16, 16), (50, 31)):
        theirs = torch.nn.functional.interpolate(
            torch.tensor(image[None]), size, mode="bilinear", antialias=True
        )
        np.testing.assert_allclose(Resize(size)([image], RNG(0)), theirs.numpy(), atol=1e-5)


def test_random_resize_draws_all_sizes():
    images = pictures([(10, 20)] * 200)
    sizes = [image.shape[1:] for image in RandomResize(4, 7)(images, RNG(0))]
    assert set(sizes) == {(4, 8), (5, 10), (6, 12), (7, 14)}


# -- crops and mirrors -----------------------------------------------------------------------------


def numbered(h, w):
    """An image whose channels are the row, the column and 1: a window says where it lay."""
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    return np.stack([rows, columns, np.ones_like(rows)])


def test_centre_crop():
    window = CenterCrop((3, 4))([numbered(8, 9)], RNG(0))[0]
    assert (window[:, 0, 0] == [2, 2, 1]).all()  # (8 - 3) / 2 and (9 - 4) / 2, to even
    whole = pictures([(5, 5)])
    np.testing.assert_array_equal(CenterCrop(5)(whole, RNG(0))[0], whole[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.data())
def test_random_crop_is_a_window_of_the_padded_image(h, w, padding, more):
    size = (more.draw(st.integers(1, h + 2 * padding)), more.draw(st.integers(1, w + 2 * padding)))
    seed = more.draw(st.integers(0, 99))
    window = RandomCrop(size, padding)([numbered(h, w)], RNG(seed))[0]
    assert window.shape == (3, *size)
    padded = Pad(padding)([numbered(h, w)], RNG(0))[0]
    places = [
        (top, left)
        for top in range(padded.shape[1] - size[0] + 1)
        for left in range(padded.shape[2] - size[1] + 1)
    ]
    assert any(
        (padded[:, t : t + size[0], q : q + size[1]] == window).all() for t, q in places
    )


def test_random_crop_reaches_every_place():
    windows = RandomCrop(2)([numbered(4, 3)] * 200, RNG(0))
    assert {tuple(window[:2, 0, 0]) for window in windows} == {
        (top, left) for top in range(3) for left in range(2)
    }


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6),
    st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.2, 5), st.floats(1, 3),
)  # fmt: skip
def test_resized_crop_windows_lie_inside(h, w, seed, low, high, ratio, wider):
    crop = RandomResizedCrop(4, (min(low, high), max(low, high)), (ratio, ratio * wider))
    top, left, height, width = crop.draw(h, w, RNG(seed))
    assert 0 <= top and 0 <= left and 0 < height and 0 < width
    assert top + height <= h and left + width <= w


def test_resized_crop_follows_its_ranges():
    crop = RandomResizedCrop(8, (0.2, 0.6), (0.5, 2))
    rng = RNG(0)
    drawn = np.array([crop.draw(500, 500, rng) for _ in range(2000)], float)
    area = drawn[:, 2] * drawn[:, 3] / 250_000
    ratio = drawn[:, 3] / drawn[:, 2]
    assert 0.19 < area.min() < 0.22 and 0.58 < area.max() < 0.61
    assert 0.49 < ratio.min() < 0.53 and 1.9 < ratio.max() < 2.02
    assert abs(np.log(ratio).mean()) < 0.03  # in the logarithm, 1/2 and 2 weigh the same


def test_resized_crop_falls_back_to_the_centre():
    crop = RandomResizedCrop(8, (1, 1))
    assert crop.draw(10, 100, RNG(0)) == (0, 43, 10, 13)  # as wide as 4/3 allows
    assert crop.draw(100, 10, RNG(0)) == (43, 0, 13, 10)
    whole = pictures([(8, 8)])
    same = RandomResizedCrop(8, (1, 1), (1, 1))(whole, RNG(0))
    np.testing.assert_array_equal(same[0], whole[0])


def test_flips():
    images = np.stack(pictures([(4, 5)] * 400))
    np.testing.assert_array_equal(RandomHorizontalFlip(0)(images, RNG(0)), images)
    np.testing.assert_array_equal(RandomHorizontalFlip(1)(images, RNG(0)), images[..., ::-1])
    flipped = RandomHorizontalFlip(0.25)(images, RNG(0))
    same = (flipped == images).all((1, 2, 3))
    assert (flipped[~same] == images[~same][..., ::-1]).all() and 60 < (~same).sum() < 140


def test_ten_crop_and_its_normalisation():
    image = numbered(7, 9)
    crops = TenCrop((3, 4))([image], RNG(0))
    places = [(0, 0), (0, 5), (4, 0), (4, 5), (2, 2)]
    for five, (top, left) in zip(range(5), places, strict=True):
        window = image[:, top : top + 3, left : left + 4]
        np.testing.assert_array_equal(crops[0, five], window)
        np.testing.assert_array_equal(crops[0, 5 + five], window[..., ::-1])
    normalised = Normalize([1, 2, 3], [2, 4, 5])(crops, RNG(0))
    assert normalised.shape == (1, 10, 3, 3, 4) and normalised.dtype == np.float32
    np.testing.assert_allclose(normalised[0, 7, 1], (crops[0, 7, 1] - 2) / 4)


@pytest.mark.parametrize("crop", [CenterCrop((4, 3)), RandomCrop((4, 3)), TenCrop((4, 3))])
def test_crops_of_smaller_images(crop):
    with pytest.raises(ValueError, match="4x3 needs images no smaller, got 3x9"):
        crop(pictures([(6, 6), (3, 9)]), RNG(0))


# -- colour ----------------------------------------------------------------------------------------


def colour(red, green, blue):
    return np.array([red, green, blue], np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)


@pytest.mark.parametrize(
    "shift, red, green, blue",
    [(1 / 3, 0, 1, 0), (-1 / 3, 0, 0, 1), (0.5, 0, 1, 1), (1 / 6, 1, 1, 0), (0, 1, 0, 0)],
)
def test_hue_of_red(shift, red, green, blue):
    turned = adjust_hue(colour(1, 0, 0), shift)
    np.testing.assert_allclose(turned, colour(red, green, blue), atol=1e-6)
    assert turned.dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(0, 1, width=32)] * 3), st.floats(-0.5, 0.5))
def test_hue_against_colorsys(rgb, shift):
    turned = adjust_hue(colour(*rgb), shift)[:, 0, 0]
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    np.testing.assert_allclose(turned, colorsys.hsv_to_rgb((h + shift) % 1, s, v), atol=1e-5)
    assert (turned >= 0).all() and (turned <= 1).all()


def test_saturation_contrast_and_brightness():
    image = colour(0.8, 0.4, 0.2)
    luma = 0.2989 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2
    np.testing.assert_allclose(grey(image), luma, rtol=1e-6)
    np.testing.assert_allclose(adjust_saturation(image, 0), luma, rtol=1e-6)
    expected = 0.5 * np.array([0.8, 0.4, 0.2]) + 0.5 * luma
    np.testing.assert_allclose(adjust_saturation(image, 0.5)[:, 1, 1], expected, rtol=1e-6)
    vivid = np.clip(2 * np.array([0.8, 0.4, 0.2]) - luma, 0, 1)
    np.testing.assert_allclose(adjust_saturation(image, 2)[:, 0, 0], vivid, rtol=1e-5, atol=1e-7)
    halves = np.concatenate([colour(0, 0, 0), image], axis=2)
    flat = adjust_contrast(halves, 0)
    np.testing.assert_allclose(flat, luma / 2, rtol=1e-5)
    stronger = np.clip(1.5 * halves - 0.5 * luma / 2, 0, 1)
    np.testing.assert_allclose(adjust_contrast(halves, 1.5), stronger, rtol=1e-5)
    doubled = adjust_brightness(image, 2)[:, 0, 0]
    np.testing.assert_allclose(doubled, [1, 0.8, 0.4], rtol=1e-6)


def test_jitter_identity_ranges_and_one_channel():
    images = pictures()
    for a, b in zip(ColorJitter()(images, RNG(0)), images, strict=True):
        np.testing.assert_array_equal(a, b)
    half = ColorJitter(brightness=(0.5, 0.5))(images, RNG(0))
    np.testing.assert_allclose(half[1], images[1] / 2)
    many = np.concatenate([colour(0.5, 0.5, 0.5)[None]] * 300)
    means = ColorJitter(brightness=0.4)(many, RNG(0)).mean((1, 2, 3))
    assert 0.3 <= means.min() < 0.31 and 0.69 < means.max() <= 0.7
    single = pictures(channels=1)
    for a, b in zip(ColorJitter(saturation=0.9, hue=0.5)(single, RNG(0)), single, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        ColorJitter(0.1)(pictures(channels=2), RNG(0))


def test_jitter_takes_its_steps_in_every_order():
    # Black then grey, or grey then black: brightness 2 and contrast 0 do not commute.
    image = np.concatenate([colour(0.9, 0.9, 0.9), colour(0.1, 0.1, 0.1)], axis=2)
    jitter = ColorJitter(brightness=(2, 2), contrast=(0, 0))
    values = {round(float(jitter([image], RNG(seed))[0][0, 0, 0]), 2) for seed in range(20)}
    assert values == {1.0, 0.6}


def test_to_rgb():
    mixed = pictures([(3, 4)], 1) + pictures([(2, 2)])
    first, second = ToRGB()(mixed, RNG(0))
    assert (first == np.repeat(mixed[0], 3, axis=0)).all() and (second == mixed[1]).all()
    with pytest.raises(ValueError, match="got 2"):
        ToRGB()(pictures(channels=2), RNG(0))
    with pytest.raises(ValueError, match="3 channels"):
        Normalize([0, 0, 0], 1)(pictures(channels=1), RNG(0))


# -- lighting --------------------------------------------------------------------------------------


def test_lighting_adds_one_colour_an_image():
    images = [np.zeros((3, 4, 5), np.float32)] * 4000
    shifts = np.array([lit[:, 0, 0] for lit in PCALighting(0.1)(images, RNG(0))])
    lit = PCALighting(0.1)(images[:2], RNG(0))
    assert all((image == image[:, :1, :1]).all() for image in lit) and (lit[0] != lit[1]).any()
    # Along each eigenvector they are spread by 0.1 times its eigenvalue.
    along = shifts @ np.array(transforms.color.IMAGENET_EIGENVECTORS)
    expected = 0.1 * np.array(transforms.color.IMAGENET_EIGENVALUES)
    np.testing.assert_allclose(along.std(axis=0), expected, rtol=0.05)
    np.testing.assert_array_equal(PCALighting(0)(images[:1], RNG(0))[0], images[0])
    with pytest.raises(ValueError, match="3 channels"):
        PCALighting()(pictures(channels=1), RNG(0))


def test_covariance_of_a_set_an_array_and_a_list():
    draw = RNG(0)
    mixing = np.array([[0.3, 0.1, 0], [0.3, -0.1, 0.02], [0.3, 0, -0.02]])
    pixels = 0.5 + (draw.uniform(-1, 1, (7 * 36, 3)) @ mixing.T)
    images = pixels.reshape(7, 6, 6, 3).transpose(0, 3, 1, 2).astype(np.float32)
    expected = np.linalg.eigvalsh(np.cov(pixels.T, bias=True))[::-1]
    for source in (images, list(images), data.ArrayDataset(images, np.arange(7))):
        values, vectors = covariance_eigen(source, batch_size=3)
        np.testing.assert_allclose(values, expected, rtol=1e-4)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-9)
        covariance = vectors @ np.diag(values) @ vectors.T
        np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), atol=1e-6)
        PCALighting(0.1, values, vectors)(images, RNG(0))
    with pytest.raises(ValueError, match="3 channels"):
        covariance_eigen(images[:, :1])
    with pytest.raises(ValueError, match="at least one pixel"):
        covariance_eigen([])


def test_mirrored_views():
    images = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    views = Mirrored()(images, None)
    assert views.shape == (2, 2, 3, 4, 5) and views.dtype == np.float32
    assert (views[:, 0] == images).all() and (views[:, 1] == images[:, :, :, ::-1]).all()
    assert (Mirrored()(list(images), None) == views).all()
    with pytest.raises(ValueError):
        Mirrored()([images[0], images[1, :, :2]], None)

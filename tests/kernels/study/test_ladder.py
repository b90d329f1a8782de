"""Every rung of every ladder against the reference, and the climb itself. No timing is asserted."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cpu, dispatch, reference
from kernels.study.ceilings import Ceilings
from kernels.study.ladder import conv, lrn, pool, rungs, show
from kernels.study.ladder.rungs import Ladder, Rung, Step, WrongRung, climb
from minidl.testing import conv2d_parameters, pool2d_parameters

some = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check(rung, problem, expected):
    """The results have the reference's shapes, dtypes and values."""
    results = rungs.as_tuple(rung.run(problem))
    for result, correct in zip(results, expected, strict=True):
        assert result.shape == correct.shape, rung.name
        assert result.dtype == (problem.x.dtype if correct.dtype.kind == "f" else correct.dtype)
        if correct.dtype.kind != "f":
            np.testing.assert_array_equal(result, correct, err_msg=rung.name)
            continue
        single = result.dtype == np.float32
        bound = (rung.tolerance if single else 1e-11) * max(1, np.abs(correct).max(initial=0))
        np.testing.assert_allclose(result, correct, rtol=0, atol=bound, err_msg=rung.name)


# -- convolution -----------------------------------------------------------------------------------


def convolution(p, seed, dtype=np.float32):
    """A drawn convolution, without groups and dilation."""
    n, c, h, w = p.x_shape
    outputs, channels, kh, kw = p.weight_shape
    x = normal(seed, (n, channels, h, w), dtype)
    return conv.Convolution(x, normal(seed + 1, (outputs, channels, kh, kw), dtype), p.stride,
                            p.padding)  # fmt: skip


def conv_reference(p):
    wide = p.x.astype(np.float64), p.weight.astype(np.float64)
    return (reference.conv2d(*wide, None, p.stride, p.padding),)


undilated = conv2d_parameters(max_batch=3, max_extra=8).map(
    lambda p: dataclasses.replace(p, dilation=(1, 1))
)


@given(undilated, seeds, st.sampled_from([np.float32, np.float64]))
@some
def test_convolution_on_any_shape(p, seed, dtype):
    problem = convolution(p, seed, dtype)
    for rung in conv._ANY:
        check(rung, problem, conv_reference(problem))


@given(undilated, seeds)
@some
def test_convolution_at_stride_1(p, seed):
    problem = convolution(dataclasses.replace(p, stride=(1, 1)), seed)
    for rung in conv._STRIDE_1:
        check(rung, problem, conv_reference(problem))
    for stride in ((1, 1), p.stride):
        point = dataclasses.replace(
            problem, weight=problem.weight[:, :, :1, :1], stride=stride, padding=(0,) * 4
        )
        for rung in conv._1X1:
            check(rung, point, conv_reference(point))
    square = dataclasses.replace(problem, weight=normal(seed, (*problem.weight.shape[:2], 3, 3)))
    square = dataclasses.replace(square, padding=tuple(max(1, p) for p in problem.padding))
    for rung in conv._3X3:
        check(rung, square, conv_reference(square))


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_tiles_of_wide_rows(stride):
    """Rows of more outputs than a tile is wide; outputs and taps that do not fill the last tile."""
    weight = normal(1, (6, 3, 1, 3))
    problem = conv.Convolution(normal(0, (2, 3, 4, 1100)), weight, stride, (0, 0, 1, 0))
    for rung in conv._ANY[2:]:
        check(rung, problem, conv_reference(problem))


@given(undilated, seeds, st.integers(1, 3000))
@some
def test_a_part_of_a_convolution_is_a_corner(p, seed, work):
    problem = convolution(p, seed)
    part = problem.part(work)
    (whole,), (corner,) = conv_reference(problem), conv_reference(part)
    assert part.work <= max(work, problem.work // whole[..., 0].size) or part.padding[0] > 0
    np.testing.assert_allclose(
        corner, whole[tuple(slice(size) for size in corner.shape)], rtol=0, atol=1e-12
    )


def test_work_is_multiply_adds():
    problem = conv.Convolution(
        np.zeros((2, 3, 8, 8), np.float32), np.zeros((4, 3, 3, 3), np.float32), (2, 2), (1,) * 4
    )
    assert problem.y_shape == (2, 4, 4, 4)
    assert problem.work == 2 * 4 * 4 * 4 * 3 * 3 * 3
    ladder = conv.build((2, 3, 8, 8), (4, 3, 3, 3), (2, 2), (1,) * 4)
    assert ladder.flops == 2 * problem.work
    assert ladder.traffic == 4 * (2 * 3 * 64 + 4 * 27 + 2 * 4 * 16)


def test_ladder_has_the_rungs_that_apply():
    strided = conv.build((1, 2, 8, 8), (3, 2, 3, 3), (2, 2), (0,) * 4)
    assert strided.rungs == conv._ANY
    five = conv.build((1, 2, 8, 8), (3, 2, 5, 5), (1, 1), (0,) * 4)
    assert five.rungs == conv._ANY + conv._STRIDE_1 + conv._SMALL
    seven = conv.build((1, 2, 8, 8), (3, 2, 7, 7), (2, 2), (0,) * 4)
    assert seven.rungs == conv._ANY + conv._SMALL
    oblong = conv.build((1, 2, 8, 8), (3, 2, 3, 5), (1, 1), (0,) * 4)
    assert oblong.rungs == conv._ANY + conv._STRIDE_1
    three = conv.build((1, 2, 8, 8), (3, 2, 3, 3), (1, 1), (0,) * 4)
    assert three.rungs == conv._ANY + conv._STRIDE_1 + conv._3X3
    one = conv.build((1, 2, 8, 8), (3, 2, 1, 1), (2, 2), (0,) * 4)
    assert one.rungs == conv._ANY + conv._1X1


@pytest.mark.parametrize(
    "x_shape, weight_shape, stride, way, function",
    [
        ((2, 3, 4, 4), (5, 3, 4, 4), (1, 1), "one matrix product", "matmul"),
        ((4, 32, 28, 28), (32, 32, 3, 3), (1, 1), "Winograd F(4x4, 3x3)",
         "conv2d_winograd_strided"),
        ((4, 3, 64, 64), (32, 3, 7, 7), (2, 2), "Winograd F(3x3, 4x4) on phases",
         "conv2d_winograd_strided"),
        ((4, 16, 30, 30), (32, 16, 5, 5), (1, 1), "Winograd F(2x2, 5x5)",
         "conv2d_winograd_strided"),
        ((2, 3, 64, 64), (2, 3, 3, 3), (1, 1), "direct sweeps", "conv2d_direct"),
        ((2, 3, 64, 64), (5, 3, 3, 3), (2, 2), "tiles from padded planes", "conv2d_tiles"),
        ((2, 3, 64, 64), (32, 3, 3, 3), (2, 2), "vectors of output maps", "conv2d_gathered"),
        ((2, 3, 64, 64), (5, 3, 3, 3), (1, 1), "vectors within rows", "conv2d_rows"),
        ((2, 8, 64, 64), (8, 8, 1, 1), (2, 2), "tiles from the images", "conv2d_pointwise"),
    ],
)
def test_the_chosen_way_is_the_one_that_runs(x_shape, weight_shape, stride, way, function):
    problem = conv.Convolution(normal(0, x_shape), normal(1, weight_shape), stride, (0,) * 4)
    with mock.patch(f"kernels.cpu.conv.{function}", wraps=getattr(cpu.conv, function)) as called:
        cpu.conv2d(problem.x, problem.weight, None, stride, problem.padding)
    assert called.called
    assert conv.chosen_way(problem) == way


# -- normalisation and pooling ---------------------------------------------------------------------


@given(st.tuples(*(st.integers(1, most) for most in (3, 9, 6, 6))), seeds)
@some
def test_lrn(shape, seed):
    x = 3 * normal(seed, shape)
    expected = reference.lrn(x.astype(np.float64), *lrn._SETTINGS)
    for rung in lrn._RUNGS:
        check(rung, lrn.Normalisation(x), expected)


@given(pool2d_parameters(max_batch=3, max_extra=8, dilated=False), seeds, st.booleans())
@some
def test_max_pool2d(p, seed, special):
    n, c, h, w = p.x_shape
    x = normal(seed, (n, c, max(h, p.kernel_size[0]), max(w, p.kernel_size[1])))
    if special:  # ties, NaN and infinities
        x = np.round(x)
        draw = np.random.default_rng(seed).random(x.shape)
        x[draw < 0.2], x[draw > 0.9] = np.nan, -np.inf
    problem = pool.Pooling(x, p.kernel_size, p.stride, p.padding)
    expected = reference.max_pool2d(x, p.kernel_size, p.stride, p.padding)
    for rung in pool._RUNGS:
        results = rung.run(problem)
        for result, correct in zip(results, expected, strict=True):
            assert result.dtype == correct.dtype
            np.testing.assert_array_equal(result, correct, err_msg=rung.name)


@pytest.mark.parametrize("work", [1, 100, 10_000])
def test_parts_are_corners(work):
    x = normal(0, (3, 4, 9, 7))
    part = lrn.Normalisation(x).part(work).x
    np.testing.assert_array_equal(part, x[tuple(slice(size) for size in part.shape)])
    assert part.shape[1] == 4 and part.shape[3] == 7
    assert part.size <= max(work, 4 * 7)
    planes = pool.Pooling(x, (3, 3), (2, 2), (0,) * 4).part(work).x
    np.testing.assert_array_equal(planes, x[tuple(slice(size) for size in planes.shape)])
    assert planes.shape[2:] == (9, 7) and planes.size <= max(work, 9 * 7)


# -- the climb -------------------------------------------------------------------------------------


def right(problem):
    """It is right."""
    return problem.x * 2


def wrong(problem):
    """It is wrong."""
    return problem.x * 2.1


@dataclasses.dataclass(frozen=True)
class Doubling:
    x: np.ndarray

    @property
    def work(self):
        return self.x.size

    def part(self, work):
        return Doubling(self.x[:work])


def doubling(*steps):
    x = np.arange(1.0, 9.0)
    return Ladder("doubling", Doubling(x), 2 * x, steps, 8, 128, "A note.")


@pytest.fixture
def small_ceilings(monkeypatch):
    monkeypatch.setattr("kernels.study.ceilings._SIDE", 64)
    monkeypatch.setattr("kernels.study.ceilings._VALUES", 1 << 12)


def test_climb_times_parts_as_if_they_were_all(small_ceilings):
    named = []
    ladder = doubling(Rung("a", right, most_work=2), Rung("b", right))
    steps, ceilings = climb(ladder, 3, named.append)
    assert named == ["a", "b", "3 rounds"]
    assert [s.share for s in steps] == [0.25, 1]
    assert all(s.error == 0 and s.seconds > 0 for s in steps)
    assert steps[0].rung.why == "It is right."
    assert ceilings.flops > 0 and ceilings.bandwidth > 0


def test_a_wrong_rung_is_an_error():
    with pytest.raises(WrongRung, match="b: its result is wrong by 5.0e-02"):
        climb(doubling(Rung("a", right), Rung("b", wrong)), 2, lambda name: None)
    with pytest.raises(WrongRung, match="b: its result has shape"):
        climb(doubling(Rung("b", lambda p: np.ones(9))), 2, lambda name: None)
    with pytest.raises(WrongRung, match="b: .* wrong by nan"):
        climb(doubling(Rung("b", lambda p: p.x * np.nan)), 2, lambda name: None)
    switches = dataclasses.replace(doubling(Rung("b", lambda p: np.arange(8))), expected=np.ones(8))
    with pytest.raises(WrongRung, match="b: its int64 result is wrong"):
        climb(switches, 2, lambda name: None)


def test_one_thread():
    before = dispatch.get_num_threads()
    with rungs.one_thread():
        assert dispatch.get_num_threads() == 1
    assert dispatch.get_num_threads() == before


def test_table():
    ladder = doubling(Rung("slow", right), Rung("other", right, aside=True), Rung("fast", right))
    steps = [
        Step(ladder.rungs[0], 4e-3, 0.5, 0.0), Step(ladder.rungs[1], 8e-3, 1, 0.0),
        Step(ladder.rungs[2], 1e-3, 1, 1e-7),
    ]  # fmt: skip
    # 128 bytes at 1 GB/s take longer than 8 operations at 1 GFLOP/s: speed is in bytes.
    header, rows = show.columns(ladder, steps, Ceilings(1e9, 1e9))
    assert header[3:5] == ("GB/s", "% of bandwidth")
    assert [row[:2] for row in rows] == [("1", "slow"), ("+", "other"), ("2", "fast")]
    assert [row[2] for row in rows] == ["4.00*", "8.00", "1.00"]
    assert [row[5] for row in rows] == ["", "0.500", "4.00"]
    assert [row[6] for row in rows] == ["1.00", "0.500", "4.00"]
    assert [row[7] for row in rows] == ["0", "0", "1e-07"]
    assert [row[8] for row in rows] == ["#", "#", "###"]
    text = show.table(ladder, steps, Ceilings(1e9, 1e9))
    assert "slow: 1/2.00" in text and text.endswith("A note.")
    page = show.markdown(ladder, steps, Ceilings(1e9, 1e9), "A machine")
    assert "| + | other | 8.00 |" in page and "A machine; float32." in page
    assert show.rungs_text(ladder).splitlines()[:2] == [" 1 slow", "    It is right."]


@pytest.mark.parametrize("ladder", [conv, lrn, pool])
def test_every_rung_is_explained(ladder):
    convolutions = conv._ANY + conv._1X1 + conv._STRIDE_1 + conv._3X3
    for rung in getattr(ladder, "_RUNGS", convolutions):
        assert len(rung.why) > 80, rung.name

"""What kernels cost, counted by hand; the roofline; the command. No timing is asserted."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from kernels import cpu, dispatch, reference
from kernels.__main__ import main
from kernels.command_line import run_group
from kernels.study import roofline
from kernels.study.cases import SPECS, as_tuple, formula, make_case
from kernels.study.ceilings import Ceilings

CEILINGS = Ceilings(flops=64e9, bandwidth=16e9)
SMALL = {
    "conv2d": {"shape": (2, 4, 8, 8), "weight": (4, 4, 3, 3)}, "matmul": {"shape": (5, 6),
    "weight": (6, 7)}, "lrn": {"shape": (2, 6, 3, 3)}, "sgd_step": {"shape": (5, 7)},
}  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command: (status, stdout, stderr); the ceilings are those of small arrays."""
    monkeypatch.setattr("kernels.study.ceilings._SIDE", 64)
    monkeypatch.setattr("kernels.study.ceilings._VALUES", 1 << 12)
    before = dispatch.get_num_threads()

    def call(*arguments):
        status = run_group(main, [str(a) for a in arguments], "python -m kernels")
        return status, *capsys.readouterr()

    yield call
    dispatch.set_num_threads(before)


def traffic(case):
    return case.traffic(as_tuple(case.call(reference)))


def test_the_cost_of_a_convolution():
    # 2 images of 4x5x5, 6 kernels of 2x3x3 (2 groups), stride 2, padding 1: outputs 2x6x3x3.
    options = {
        "shape": (2, 4, 5, 5), "weight": (6, 2, 3, 3), "stride": (2, 2), "padding": (1,) * 4,
        "groups": 2,
    }  # fmt: skip
    x, weight, y = 2 * 4 * 25, 6 * 18, 2 * 6 * 9
    for name in ("conv2d", "conv2d_input_grad", "conv2d_weight_grad"):
        case = make_case(name, **options)
        assert case.flops == 2 * y * 18
        assert traffic(case) == 4 * (x + weight + y), name
    affine = make_case("conv2d_affine", **options)
    assert affine.flops == 2 * y * 18 + 3 * y
    assert traffic(affine) == 4 * (x + weight + y + 2 * 6)
    # The other way round: 2 maps a group of 3x3 weights, from 2x4x5x5 to 2x6x9x9 without padding.
    back = make_case("conv_transpose2d", **{**options, "weight": (4, 3, 3, 3), "padding": (1,) * 4})
    assert back.flops == 2 * (2 * 4 * 25) * 27
    assert traffic(back) == 4 * (2 * 4 * 25 + 4 * 27 + 2 * 6 * 81)


@pytest.mark.parametrize(
    "name, options, flops, values",
    [
        ("matmul", {"shape": (3, 4), "weight": (4, 5)}, 2 * 3 * 4 * 5, 12 + 20 + 15),
        # 2x2 windows of stride 2 over 2x3x4x6: 2x3x2x3 outputs; switches are as large as outputs.
        ("max_pool2d", "pool", 36 * 3, 144 + 2 * 36),
        ("max_pool2d_backward", "pool", 36, 2 * 36 + 144),
        ("max_unpool2d", "pool", 36, 2 * 36 + 144),
        ("max_pool2d_gather", "pool", 0, 144 + 2 * 36),
        ("avg_pool2d", "pool", 36 * 4, 144 + 36),
        ("avg_pool2d_backward", "pool", 36 * 5, 144 + 36),
        ("global_avg_pool2d", "maps", 144, 144 + 6),
        ("global_avg_pool2d_backward", "maps", 6, 144 + 6),
        ("im2col", "pool", 0, 144 + 3 * 4 * 2 * 2 * 3),
        ("col2im", "pool", 3 * 4 * 2 * 2 * 3, 144 + 3 * 4 * 2 * 2 * 3),
        ("lrn", {"shape": (2, 3, 4, 6), "size": 5}, 13 * 144, 3 * 144),
        ("lrn_backward", {"shape": (2, 3, 4, 6), "size": 5}, 11 * 144, 4 * 144),
        ("batchnorm_train", "maps", 7 * 144, 2 * 144 + 5 * 3),
        ("batchnorm_eval", "maps", 3 * 144, 2 * 144 + 4 * 3),
        ("batchnorm_affine", "maps", 5 * 3, 6 * 3),
        ("batchnorm_backward", "maps", 10 * 144, 3 * 144 + 5 * 3),
        ("relu", "maps", 144, 2 * 144),
        ("relu_backward", "maps", 144, 3 * 144),
        ("bias_relu", "maps", 2 * 144, 2 * 144 + 3),
        ("bias_relu_backward", "maps", 2 * 144, 3 * 144 + 3),
        ("channel_sums", "maps", 144, 144 + 3),
        ("dropout", "maps", 144, 2 * 144),
        ("dropout_mask", "maps", 0, 144 / 4),  # a byte each
        ("sgd_step", "maps", 4 * 144, 5 * 144),
        ("adam_step", "maps", 13 * 144, 7 * 144),
    ],
)
def test_the_cost_of_other_kernels(name, options, flops, values):
    if options == "pool":
        options = {
            "shape": (2, 3, 4, 6), "kernel_size": (2, 2), "stride": (2, 2), "padding": (0,) * 4,
        }  # fmt: skip
    elif options == "maps":
        options = {"shape": (2, 3, 4, 6)}
    case = make_case(name, **options)
    assert case.flops == flops
    assert traffic(case) == 4 * values


def test_every_kernel_has_a_case():
    assert sorted(SPECS) == reference.__all__
    assert all(formula(name) for name in SPECS)


def test_roof():
    assert roofline.attainable(CEILINGS, 1) == 16e9
    assert roofline.attainable(CEILINGS, 4) == roofline.attainable(CEILINGS, 1000) == 64e9


def test_chart_in_characters():
    speeds = {"reference": 4e9, "cpu": 48e9}
    lines = roofline.text_chart(CEILINGS, 2.0**3, speeds).splitlines()
    (near,) = (line for line in lines if "C" in line and "|" in line)
    (far,) = (line for line in lines if "R" in line and "|" in line)
    # 2^3 is half of the way from 2^-4 to 2^10.
    assert near.index("C") == far.index("R") == 10 + round(63 / 2)
    assert lines.index(near) < lines.index(far)
    assert any("/" in line.split("|")[-1] for line in lines) and "C cpu" in lines[-1]
    assert all(line == line.rstrip() for line in lines[1:-3])
    together = roofline.text_chart(CEILINGS, 2.0**3, {"reference": 4e9, "cpu": 4.01e9})
    assert sum("*" in line for line in together.splitlines()) == 1


@pytest.mark.parametrize("name", SMALL)
def test_command(run, name, tmp_path):
    flags = [
        item for option, value in SMALL[name].items()
        for item in (f"--{option}", ",".join(map(str, value)))
    ]  # fmt: skip
    picture = tmp_path / "new" / "roof.png"
    status, stdout, stderr = run(
        "bench", name, *flags, "--threads", 1, "--rounds", 1, "--plot", picture
    )
    assert (status, stderr) == (0, "")
    rows = [line.split() for line in stdout.splitlines()]
    (definition,) = (row for row in rows if row[:1] == ["reference"])
    assert len(definition) == 6 and definition[-1] == "1.00"
    assert any(row[:1] == ["cpu"] and len(row) == 6 for row in rows)
    assert any(row[:1] == ["cuda:"] for row in rows)
    case = make_case(name, **SMALL[name])
    assert f"Float operations: {case.flops:,}." in stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_command_without_float_operations(run, tmp_path):
    status, stdout, _ = run("bench", "im2col", "--shape", "1,2,8,8", "--rounds", 1)
    assert status == 0 and "Roof here: the bandwidth" in stdout and "2^-4" not in stdout
    status, _, stderr = run(
        "bench", "im2col", "--shape", "1,2,8,8", "--plot", tmp_path / "roof.png"
    )
    assert status == 2 and "no roofline to plot" in stderr


def test_picture_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    picture = tmp_path / "file" / "roof.png"
    status, _, stderr = run("bench", "relu", "--shape", "2,2", "--rounds", 1, "--plot", picture)
    assert status == 2 and len(stderr.splitlines()) == 1 and str(picture.parent) in stderr


def test_results_that_differ_are_not_timed(run, monkeypatch):
    monkeypatch.setattr(cpu, "relu", lambda x: x)
    status, stdout, stderr = run("bench", "relu", "--shape", "2,2")
    assert (status, stdout) == (2, "")
    assert stderr == "Error: the result of cpu is not that of the reference: nothing is timed\n"


def test_a_third_implementation(run, monkeypatch, tmp_path):
    """Where there is a GPU its kernels run on copies there; NumPy stands in for CuPy."""
    device, copied, waits = ModuleType("kernels.cuda"), [], []
    device.relu = reference.relu
    array_module = SimpleNamespace(
        asarray=lambda a: copied.append(a.shape) or a.copy(), asnumpy=np.asarray,
        cuda=SimpleNamespace(Device=lambda: SimpleNamespace(synchronize=lambda: waits.append(1))),
    )  # fmt: skip
    runtime = SimpleNamespace(array_module=lambda: array_module)
    monkeypatch.setitem(sys.modules, "kernels.cuda", device)
    monkeypatch.setitem(sys.modules, "kernels.cuda.runtime", runtime)
    monkeypatch.setattr(dispatch, "use", lambda name: dispatch.winograd(4))
    monkeypatch.setattr("kernels.study.device.measure_ceilings", lambda rounds: CEILINGS)
    picture = tmp_path / "roof.png"
    status, stdout, _ = run("bench", "relu", "--shape", "3,2", "--rounds", 1, "--plot", picture)
    assert status == 0 and (3, 2) in copied and waits
    (row,) = (line.split() for line in stdout.splitlines() if line.startswith("cuda  "))
    assert len(row) == 6
    # 6 operations on 48 bytes: 1/8 of an operation a byte, at 16 GB/s.
    assert float(row[4]) == pytest.approx(100 * float(row[3]) / 16, abs=1)
    assert "GPU. Measured ceilings: 64 GFLOP/s of a large product, 16.0 GB/s" in stdout
    assert "GPU. Roof here: 2 GFLOP/s, set by traffic." in stdout
    assert "R reference, C cpu\n" in stdout and "C cuda\n" in stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, stdout, _ = run("bench", "dropout", "--shape", "3,2", "--rounds", 1)
    assert "cuda: no dropout there yet" in stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["bench"], "Missing argument 'KERNEL'"),
        (["ladder"], "Missing argument"),
        (["bench", "conv3d"], "'conv3d' is not one of"),
        (["bench", "lrn", "--weight", "3"], "lrn has no --weight: it takes --shape, --size"),
        (["bench", "conv2d", "--kernel", "3"], "conv2d has no --kernel: it takes --shape"),
        (["bench", "conv2d", "--weight", "64,3,3,3"], "weight must have x's 64 channels"),
        (["bench", "conv2d", "--shape", "8,64,56"], "x must have 4 axes"),
        (["bench", "conv2d", "--shape", "a,b"], "'a,b' is not a list of integers"),
        (["bench", "conv2d", "--shape", "8,0,5,5"], "every extent must be at least 1"),
        (["bench", "conv2d", "--stride", "0"], "--stride must be at least 1, got 0"),
        (["bench", "conv2d", "--stride", "1,2,3"], "--stride must be an int or two ints"),
        (["bench", "conv2d", "--padding", "1,2,3"], "--padding must be an int, (vertical"),
        (["bench", "max_pool2d", "--padding", "3"], "padding must be at most half of kernel_size"),
        (["bench", "relu_backward", "--threads", "9999"], "threads must be an int from 1 to"),
        (["bench", "matmul", "--shape", "2,3", "--weight", "2,3"], "(..., M, K) and (..., K, N)"),
        (["bench", "im2col", "--shape", "2,3"], "shape must be N,C,H,W, got 2,3"),
        (["bench", "bias_relu", "--shape", "5"], "shape must be N,C,..., got 5"),

        (["bench", "relu", "--shape", "99999,99999,9999"], "Unable to allocate"),
        (["ladder", "lrn", "--shape", "9999,9999,999,99"], "Unable to allocate"),
        (["ladder", "relu"], "'relu' is not one of"),
        (["ladder", "lrn", "--weight", "3"], "lrn has no --weight: it takes --shape"),
        (["ladder", "conv2d", "--weight", "64,3,3,3"], "weight must have x's 64 channels"),
        (["ladder", "max_pool2d", "--kernel", "1000"], "does not fit into the 112x112 input"),
        (["ladder", "lrn", "--shape", "3,3"], "x must have shape (N, C, H, W)"),
        (["ladder", "lrn", "--rounds", "0"], "--rounds"),
    ],
)
def test_misuse_is_one_line(run, arguments, expected):
    status, stdout, stderr = run(*arguments)
    assert (status, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1 and expected in stderr


def test_ladder_command(run):
    arguments = ("--shape", "1,2,9,9", "--weight", "3,2,3,3", "--rounds", 1, "--threads", 1)
    status, stdout, stderr = run("ladder", "conv2d", *arguments)
    assert status == 0
    assert " 1 six loops in Python\n    The definition" in stdout
    assert "10  Winograd F(4x4, 3x3)" in stdout
    assert "kernels.cpu.conv2d takes here: " in stdout
    assert stderr.splitlines()[-1] == "1 round ..."
    status, stdout, _ = run("ladder", "conv2d", *arguments, "--stride", 2, "--markdown")
    assert status == 0 and stdout.startswith("`conv2d of 1x2x9x9 with 3x2x3x3, stride 2x2")
    assert "| 8 | tiles from padded planes |" in stdout and "Winograd" not in stdout


@pytest.mark.parametrize("name", ["lrn", "max_pool2d"])
def test_other_ladders(run, name):
    status, stdout, _ = run("ladder", name, "--shape", "1,2,9,9", "--rounds", 1, "--threads", 1)
    assert status == 0 and "% of bandwidth" in stdout

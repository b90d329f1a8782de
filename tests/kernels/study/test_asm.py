"""Machine code and PTX: the reading of both, and what the compilers make of the kernels."""

import platform
import sys

import pytest

from kernels import cpu
from kernels.__main__ import main
from kernels.command_line import run_group
from kernels.cpu.emitter import ROWS, VECTORS
from kernels.study import gpu_code, machine_code, ptx, sass
from kernels.study.asm import _X86
from kernels.study.cases import make_case
from kernels.study.machine_code import Instruction

x86 = pytest.mark.skipif(platform.machine() not in _X86, reason="reads x86-64 code")


@pytest.fixture
def run(capsys):
    """Run a command: (status, stdout, stderr)."""

    def call(*arguments):
        status = run_group(main, list(arguments), "python -m kernels")
        return status, *capsys.readouterr()

    return call


# -- x86-64 ----------------------------------------------------------------------------------------

ASSEMBLY = """\
\t.text
_ZN7kernels3cpu4pool3addB2v1Ei:
\tpushq\t%rbx
.LBB0_1:
\tmovq\t(%rsi), %rax
.LBB0_2:
\tvmovups\t-32(%rdi,%r8,4), %ymm1
\tvfmadd231ps\t(%rdx,%r8,4), %ymm5, %ymm1   # a note
\tvaddps\t%zmm1, %zmm2, %zmm2
\tvmovups\t%ymm1, (%rdi,%r8,4)
\taddq\t$8, %r8
\tjne\t.LBB0_2
\tvaddss\t%xmm0, %xmm1, %xmm1
\tjmp\t.LBB0_1
\tje\t.LBB0_4
.LBB0_4:
\tretq
_ZN7cpython7kernels3cpu4pool3addB2v1Ei:
.LBB1_1:
\tvaddps\t%zmm1, %zmm2, %zmm2
\tjne\t.LBB1_1
outer:
.LBB2_1:
\tcallq\tinner
\tvaddps\t%xmm1, %xmm2, %xmm2
\tjne\t.LBB2_1
"""


def test_innermost_loops_are_found():
    (loop,) = machine_code.loops(ASSEMBLY)
    assert (loop.label, len(loop.body)) == (".LBB0_2", 6)
    assert machine_code.readable(loop.function) == "kernels.cpu.pool.add"
    counts = machine_code.count(loop.body)
    assert counts == {
        ("load", "ymm"): 1, ("multiply-add", "ymm"): 1, ("arithmetic", "zmm"): 1,
        ("store", "ymm"): 1, ("other", "integer"): 2,
    }  # fmt: skip
    assert loop.rank == (0, 8, 16, 40)
    comments = [loop.comment(instruction) for instruction in loop.body]
    assert comments[:2] == ["load 8", "8 x multiply, add, one factor from memory"]
    assert comments[-2:] == ["", "back to the first line"]
    everything = machine_code.functions(ASSEMBLY)
    assert [machine_code.readable(name) for name in everything] == ["kernels.cpu.pool.add", "outer"]
    assert machine_code.count(everything["outer"])["arithmetic", "xmm"] == 1


@pytest.mark.parametrize(
    "text, kind, width, lanes, comment",
    [
        ("vfmadd213ps (%rdx,%r8,4), %ymm5, %ymm10", "multiply-add", "ymm", 8,
         "8 x multiply, add, one factor from memory"),
        ("vfmadd231pd %zmm1, %zmm2, %zmm3", "multiply-add", "zmm", 8, "8 x multiply, add"),
        ("vfmadd231ss %xmm1, %xmm2, %xmm3", "multiply-add", "single", 1, "multiply, add"),
        ("vmaxps -96(%r15,%r8,4), %ymm1, %ymm2", "arithmetic", "ymm", 8, "8 x max from memory"),
        ("addps %xmm1, %xmm2", "arithmetic", "xmm", 4, "4 x add"),
        ("vsqrtsd %xmm1, %xmm2, %xmm2", "arithmetic", "single", 1, "sqrt"),
        ("vmovups %zmm1, 64(%rax)", "store", "zmm", 16, "store 16"),
        ("vmovss (%rax), %xmm0", "load", "single", 1, "load 1"),
        ("vmovd (%rax), %xmm0", "load", "single", 1, "load 1"),
        ("vmovq %xmm0, (%rax)", "store", "single", 1, "store 1"),
        ("vbroadcastsd (%rax), %zmm0", "shuffle", "zmm", 8, "broadcast from memory"),
        ("vgatherqps 8(%rax,%zmm0), %ymm2 {%k1}", "gather", "ymm", 8, "8 x gatherq from memory"),
        ("vbroadcastss %xmm3, %ymm8", "shuffle", "ymm", 8, "broadcast"),
        ("vmovaps %zmm3, %zmm2 {%k1}", "shuffle", "zmm", 16, "select by a mask"),
        ("vcmpnleps %zmm2, %zmm3, %k1", "compare", "zmm", 16, "16 x cmpnle"),
        ("vpaddq (%r14,%rcx,8), %ymm0, %ymm0", "integers", "ymm", 4, "4 x paddq from memory"),
        ("vxorps %xmm2, %xmm2, %xmm2", "other", "xmm", 4, ""),
        ("addq $16, %r8", "other", "integer", 0, ""),
        ("jne .LBB0_2", "other", "integer", 0, ""),
    ],
)  # fmt: skip
def test_instructions(text, kind, width, lanes, comment):
    mnemonic, _, operands = text.partition(" ")
    (line,) = machine_code.functions(f"f:\n\t{mnemonic}\t{operands}\n")["f"]
    assert (line.kind, line.width, line.lanes, line.comment) == (kind, width, lanes, comment)


def test_operands_are_parted_outside_of_addresses():
    (line,) = machine_code.functions("f:\n\tvmovups\t-32(%rsi,%r8,4), %ymm10\n")["f"]
    assert line == Instruction("vmovups", ("-32(%rsi,%r8,4)", "%ymm10"))


def test_names():
    assert machine_code.readable("NRT") == "NRT"
    assert machine_code.readable("_ZN7kernels3cpu3lrn5_dampB2v1E5ArrayIfE") == (
        "kernels.cpu.lrn._damp"
    )
    assert machine_code.readable("__gufunc__._ZN13_3cdynamic_3e22__numba_parfor_gufunc_Ei") == (
        "the parallel loop"
    )


DIRECT = {"shape": (2, 3, 64, 64), "weight": (2, 3, 3, 3)}


@x86
def test_the_direct_convolution_multiplies_and_adds_in_vectors():
    from kernels.study.compiled import traced

    case = make_case("conv2d", **DIRECT)
    found = {function.name: function for function in traced(lambda: case.call(cpu))}
    best = machine_code.loops(found["kernels.cpu.conv_direct._conv"].assembly())[0]
    counts = machine_code.count(best.body)
    assert sum(counts["multiply-add", width] for width in ("xmm", "ymm", "zmm")) >= 5
    assert not any(kind == "gather" or width == "single" for kind, width in counts)


@x86
@pytest.mark.parametrize(
    "way, size, outputs, kernel, products",
    [
        ("tiles", 13, 40, 7, lambda: ROWS * VECTORS),
        ("gathered", 18, 48, 7, lambda: ROWS * VECTORS),
        ("rows", 30, 6, 5, lambda: 2 * 6),
    ],
)
def test_a_tile_of_the_convolution_stays_in_registers(way, size, outputs, kernel, products):
    from kernels.study.compiled import traced

    case = make_case("conv2d", shape=(2, 16, size, size), weight=(outputs, 16, kernel, kernel))
    found = {function.name: function for function in traced(lambda: case.call(cpu))}
    loops = machine_code.loops(found[f"kernels.cpu.conv_{way}._correlate"].assembly())
    counts = [machine_code.count(loop.body) for loop in loops]
    best = next(c for c in counts if _multiply_adds(c) and _multiply_adds(c) % products() == 0)
    assert not any(kind in ("store", "gather") for kind, _ in best)


def _multiply_adds(counts):
    """How many there are, all in vectors of one width."""
    products = [counts["multiply-add", width] for width in ("xmm", "ymm", "zmm")]
    return max(products) if sum(products) == max(products) else 0


KEPT = """\
f:
.LBB0_1:
\tvfmadd231ps\t%zmm1, %zmm2, %zmm3
\tvfmadd231ps\t%zmm1, %zmm2, %zmm4
\tvmovups\t%zmm3, (%rdi)
\tjne\t.LBB0_1
.LBB0_2:
\tvfmadd231ps\t(%rsi), %zmm2, %zmm3
\tjne\t.LBB0_2
"""


def test_loops_that_keep_their_sums_come_first():
    assert [loop.rank for loop in machine_code.loops(KEPT)] == [
        (16, 16, 0, 16), (0, 32, 0, 48)
    ]  # fmt: skip


@x86
def test_the_hot_loop_of_winograd_is_its_product():
    from kernels.study.compiled import traced

    case = make_case("conv2d", shape=(2, 64, 28, 28), weight=(64, 64, 3, 3))
    found = {function.name: function for function in traced(lambda: case.call(cpu))}
    best = machine_code.loops(found["kernels.cpu.winograd._by_blocks"].assembly())[0]
    assert machine_code.readable(best.function) == "kernels.cpu.simd.row_tiles"


def test_functions_come_in_the_order_of_their_time(monkeypatch):
    from kernels.study import compiled

    case = make_case("batchnorm_train", shape=(2, 3, 4, 4))
    spent = iter([1, 7])  # seconds in each of the two functions
    clock = iter(tick for seconds in spent for tick in (0, seconds))
    monkeypatch.setattr(compiled.time, "perf_counter", lambda: next(clock))
    found = compiled.traced(lambda: case.call(cpu))
    assert [(function.name.rsplit(".", 1)[1], function.seconds) for function in found] == [
        ("_scale_shift", 7), ("_plane_moments", 1)
    ]  # fmt: skip


def test_tracing_leaves_the_kernels_as_they_were():
    from kernels.study.compiled import traced

    before = dict(vars(cpu.activation))
    with pytest.raises(ZeroDivisionError):
        traced(lambda: 1 / 0)
    (relu,) = traced(lambda: make_case("relu", shape=(2, 3)).call(cpu))
    assert relu.name == "kernels.cpu.activation._relu_piece"
    assert vars(cpu.activation) == before


@x86
def test_command(run):
    status, stdout, _ = run("asm", "relu", "--loops", "1")
    assert status == 0
    lines = stdout.splitlines()
    assert lines[0] == "== kernels.cpu.activation._relu"
    assert lines[2].split() == ["instructions", "zmm", "ymm", "xmm", "single", "integer"]
    assert sum("instructions a turn" in line for line in lines) == 1
    assert any("x max" in line for line in lines)
    status, stdout, _ = run("asm", "relu", "--full")
    assert status == 0 and "\tvmaxps\t" in stdout and "\n_ZN" in stdout


@x86
def test_products_are_multiply_adds_of_the_house(run):
    status, stdout, _ = run("asm", "matmul", "--shape", "256,256", "--weight", "256,256")
    assert status == 0 and "== kernels.cpu.matmul._product" in stdout
    assert "vfmadd" in stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["asm", "matmul", "--shape", "2,2", "--weight", "2,2"], "runs no compiled function"),
        (["asm", "relu", "--weight", "3"], "relu has no --weight"),
        (["asm", "conv2d", "--weight", "64,3,3,3"], "weight must have x's 64 channels"),
        (["asm", "relu", "--loops", "0"], "--loops"),
        (["asm", "relu", "--arch", "sm_90"], "--arch is of use with --cuda or --sass alone"),
        (["asm", "relu", "--cuda", "--shape", "2,2"], "it takes no --shape"),
    ],
)
@x86
def test_misuse_is_one_line(run, arguments, expected):
    status, stdout, stderr = run(*arguments)
    assert (status, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1 and expected in stderr


def test_other_processors(run, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    status, _, stderr = run("asm", "relu")
    assert status == 2 and stderr == "Error: asm reads x86-64 code, this machine is aarch64\n"


# -- PTX -------------------------------------------------------------------------------------------

SOURCE = """\
extern "C" __global__ void relu(const REAL *x, REAL *y, int n)
{
    REAL total = 0;
    #pragma unroll 1
    for (int i = 0; i < n; i++)
        total += x[i] * x[i];
    y[0] = total;
}
extern "C" __global__ void other(REAL *y) { y[0] = 1; }
"""
PTX = """\
.visible .entry relu(
\t.param .u64 relu_param_0
)
{
\t.reg .pred %p<3>;
\tld.param.u64 %rd1, [relu_param_0];
$L__BB0_1:
\tld.global.f32 %f1, [%rd1];   // a note
\tfma.rn.f32 %f2, %f1, %f1, %f2;
\tadd.s32 %r1, %r1, 1;
\t@%p1 bra $L__BB0_1;
\tst.global.f32 [%rd1], %f2;
\tbar.sync 0;
\tret;
}
"""


def test_loops_of_ptx():
    assert list(ptx.entries(PTX)) == ["relu"]
    (loop,) = ptx.LANGUAGE.loops(ptx.entries(PTX))
    assert (loop.function, loop.label) == ("relu", "$L__BB0_1")
    assert ptx.LANGUAGE.count(loop.body) == {
        "global load": 1, "multiply-add": 1, "other": 1, "branch": 1
    }  # fmt: skip
    assert ptx.LANGUAGE.count(ptx.entries(PTX)["relu"]) == {
        "global load": 1, "multiply-add": 1, "branch": 1, "global store": 1, "barrier": 1,
        "other": 3,
    }  # fmt: skip


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A folder of CUDA sources with one for the kernels of activation; skips without NVRTC."""
    (tmp_path / "activation.cu").write_text(SOURCE)
    try:
        ptx.compile_source(tmp_path / "activation.cu", "sm_80")
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(gpu_code, "SOURCES", tmp_path)
    return tmp_path


def test_cuda(run, sources):
    status, stdout, _ = run("asm", "relu", "--cuda")
    assert status == 0
    assert stdout.startswith("== kernels/cuda/activation.cu for sm_80\n")
    assert "other" not in stdout.splitlines()[2]  # the entry of another kernel
    assert any("fma.rn.f32" in line and "// multiply-add" in line for line in stdout.splitlines())
    (sources / "loss.cu").write_text(
        'extern "C" __global__ void softmax_cross_entropy(REAL *x) { x[0] = x[1] > 0 ? x[2] : 0; }'
    )
    status, stdout, _ = run("asm", "softmax_cross_entropy", "--cuda")
    assert "softmax_cross_entropy has no loop; all of it:" in stdout and "// compare" in stdout
    status, stdout, _ = run("asm", "relu", "--cuda", "--full", "--arch", "sm_90")
    assert status == 0 and ".target sm_90" in stdout


def test_cuda_errors(run, sources):
    status, _, stderr = run("asm", "relu", "--cuda", "--arch", "sm_1")
    assert status == 2 and "activation.cu: nvrtc: error: invalid value" in stderr
    (sources / "activation.cu").write_text("__global__ void broken() { nothing; }")
    status, _, stderr = run("asm", "relu", "--cuda")
    assert status == 2 and '"nothing" is undefined' in stderr and len(stderr.splitlines()) == 1
    status, _, stderr = run("asm", "lrn", "--cuda")
    assert status == 2 and "no kernels/cuda/lrn.cu" in stderr


def test_cuda_without_nvrtc(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", None)
    (tmp_path / "a.cu").write_text(SOURCE)
    with pytest.raises(RuntimeError, match="PTX needs CuPy and NVRTC: pip install"):
        ptx.compile_source(tmp_path / "a.cu", "sm_80")


SASS = """\
//--------------------- .text.relu          --------------------------
\t.section\t.text.relu,"ax",@progbits
\t.align\t128
        .global         relu
relu:
.text.relu:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E R2, [R4.64] ;
        /*0020*/                   FFMA R3, R2, R2, R3 ;
        /*0030*/              @!P1 FMNMX R3, RZ, R3, !PT ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   STG.E [R4.64], R3 ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
        /*0080*/                   NOP;
//--------------------- .nv.shared.relu --------------------------
        /*0000*/ \t.byte\t0xff, 0xff ;
"""


def test_loops_of_sass():
    entries = sass.entries(SASS)
    assert list(entries) == ["relu"]
    (loop,) = sass.LANGUAGE.loops(entries)  # the jump to itself at the end is left out
    assert (loop.function, loop.label) == ("relu", ".L_x_1")
    assert sass.LANGUAGE.count(loop.body) == {
        "global load": 1, "multiply-add": 1, "arithmetic": 1, "branch": 1
    }  # fmt: skip
    assert sass.LANGUAGE.count(entries["relu"]) == {
        "global load": 1, "multiply-add": 1, "arithmetic": 1, "global store": 1, "branch": 2,
        "other": 1,
    }  # fmt: skip


def test_sass(run, sources):
    if sass.find_tool() is None:
        pytest.skip(f"needs nvdisasm: {sass.INSTALL}")
    status, stdout, stderr = run("asm", "relu", "--sass")
    assert (status, stderr) == (0, "")
    lines = stdout.splitlines()
    assert any("FFMA" in line and line.endswith("// multiply-add") for line in lines)
    assert any("STG" in line for line in run("asm", "relu", "--sass", "--full")[1].splitlines())
    status, _, stderr = run("asm", "relu", "--sass", "--arch", "sm_1")
    assert status == 2 and "activation.cu: nvrtc: error: invalid value" in stderr


def test_sass_by_a_stand_in_of_nvdisasm(run, sources, monkeypatch):
    """What the tool is given is a whole ELF file; what it prints is read, and what it refuses."""
    tool = sources / "nvdisasm"
    tool.write_text(f"#!/bin/sh\nhead -c 4 \"$2\" >&2\ncat <<'END'\n{SASS}END\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sass, "find_tool", lambda: str(tool))
    status, stdout, stderr = run("asm", "relu", "--sass")
    assert (status, stderr) == (0, "")
    assert "relu, loop .L_x_1: 4 instructions a turn" in stdout
    tool.write_text("#!/bin/sh\necho no such GPU >&2\nexit 1\n")
    status, stdout, stderr = run("asm", "relu", "--sass")
    assert (status, stdout, stderr) == (2, "", "Error: nvdisasm: no such GPU\n")


def test_without_nvdisasm_there_is_ptx(run, sources, monkeypatch):
    monkeypatch.setattr(sass, "find_tool", lambda: None)
    status, stdout, stderr = run("asm", "relu", "--sass")
    assert status == 0 and "fma.rn.f32" in stdout
    assert stderr == f"SASS needs nvdisasm ({sass.INSTALL}); this is PTX.\n"
    with pytest.raises(RuntimeError, match="SASS needs nvdisasm"):
        sass.compile_source(sources / "activation.cu", "sm_80")


def test_nvdisasm_is_found_in_the_path_or_the_package(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia" / "cu13" / "bin" / "nvdisasm"
    tool.parent.mkdir(parents=True)
    tool.write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert sass.find_tool() == str(tool)
    monkeypatch.setattr(sys, "path", [])
    assert sass.find_tool() is None
    monkeypatch.setenv("PATH", str(tool.parent))
    tool.chmod(0o755)
    assert sass.find_tool() == str(tool)

"""The loop of docs/distributed.md runs as it stands, on two ranks and on one."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "distributed.md"


@pytest.mark.parametrize("ranks", [0, 2])
def test_the_loop_runs(launch, tmp_path, ranks):
    (code,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    loop = tmp_path / "loop.py"
    # One write a rank: the lines of two could mix otherwise.
    result = "print(f'{(model[1].weight.data ** 2).sum()}\\n', end='', flush=True)\n"
    loop.write_text(code + result)
    done = launch(ranks, *(["-m", "mpi4py"] if ranks else []), loop)
    assert done.status == 0, done.err
    assert len(set(done.out.split())) == 1 and len(done.out.split()) == max(ranks, 1)

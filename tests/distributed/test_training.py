"""Training on several ranks is training: equal to one process with the same batches."""

import numpy as np
import pytest

# Of the largest weight of an array; float64 shows that what float32 leaves is rounding.
CLOSE = {"float32": 1e-5, "float64": 1e-10}
# A last digit of float32 that differs may round to another float16.
ROUNDED = 2e-3


@pytest.fixture(scope="module")
def alone(program, tmp_path_factory):
    """What one process learns: (name, dtype) -> (state, rows)."""
    known = {}

    def get(name, dtype):
        if (name, dtype) not in known:
            known[name, dtype] = program.train(name, dtype, tmp_path_factory.mktemp("alone"))
        return known[name, dtype]

    return get


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_equal_to_one_process(program, alone, check, tmp_path, name, dtype, ranks):
    expected, expected_rows = alone(name, dtype)
    check(ranks, "equal", name, dtype, tmp_path)
    results = [dict(np.load(tmp_path / f"rank{rank}.npz")) for rank in range(ranks)]
    for other in results[1:]:  # to the bit, running statistics included
        assert all((other[key] == value).all() for key, value in results[0].items())
    rows = eval(str(results[0].pop("rows")))
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, rel=CLOSE[dtype])
    for key, value in expected.items():
        assert results[0][key].dtype == value.dtype
        program.agree(results[0][key], value, CLOSE[dtype], key)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"last.safetensors", "best.safetensors", "history.csv", "history.json"}


def test_mixed_precision_is_that_of_one_process(program, alone, check, tmp_path):
    """The scale of the gradients, too: all ranks leave out the steps that one process would."""
    expected, _ = alone("lenet", "float16")
    check(2, "equal", "lenet", "float16", tmp_path)
    first, second = (dict(np.load(tmp_path / f"rank{rank}.npz")) for rank in range(2))
    first.pop("rows")
    for key, value in first.items():
        assert (second[key] == value).all()
        program.agree(value, expected[key], ROUNDED, key)
    assert first["factor"] == expected["factor"] and first["good_steps"] == expected["good_steps"]


def test_ranks_agree_on_which_steps_to_take(check):
    check(2, "usable")


def test_running_statistics_without_synchronisation(check, tmp_path):
    check(2, "unsynchronised", tmp_path)


def test_collectives(check):
    check(3, "collectives")


@pytest.mark.parametrize("dtype", CLOSE)
def test_sync_batch_norm(check, dtype):
    check(4, "batch_norm", dtype)


def test_unused_parameters(check):
    check(3, "unused")

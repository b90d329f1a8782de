"""How the pool of threads is set up."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("wishes", "spins"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_waiting_threads_spin_briefly_unless_asked_otherwise(wishes, spins):
    code = "import os, kernels.cpu; print(os.environ.get('GOMP_SPINCOUNT'))"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | wishes
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == spins

"""Fixtures shared by the tests."""

import pytest

from kernels import dispatch


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Runs a test once with the reference kernels and once with the fast ones."""
    with dispatch.use(request.param):
        yield request.param

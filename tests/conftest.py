"""Fixtures shared by the tests."""

import pytest

from kernels import dispatch


@pytest.fixture(autouse=True)
def restore_backend():
    """Commands choose the backend for the whole process."""
    before = dispatch.backend()
    yield
    dispatch.use(before)


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Runs a test once with the reference kernels and once with the fast ones."""
    with dispatch.use(request.param):
        yield request.param

"""Fixtures shared by the tests."""

import shutil

import pytest

from kernels import dispatch

BROWSER_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,1000",
)  # fmt: skip


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a window, shared by the tests of a file."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium: pip install -e '.[browser]'"
    )
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs the programs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*BROWSER_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()

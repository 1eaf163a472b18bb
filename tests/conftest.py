"""What every test gets: no network, its own seed, one thread count, and the real data where it is present."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mm_rec import cpu

cpu.configure_libraries()  # before torch is imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["seldom"]
ROOT = Path(__file__).resolve().parent.parent
THREADS = 2  # the same everywhere: results are bit-exact only for one thread count


def pytest_configure() -> None:
    """Set what libraries read while they are imported, for this process and the ones that tests start."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in a shell's background, also by children


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Every test starts from one seed, thread count and dtype, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Find a file or folder of the real test data by its path there; the test is skipped where it is absent."""
    named = os.environ.get("MMREC_TEST_DATA", "../shared/data")
    folder = ROOT / named  # an absolute path stays as it is

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{folder / name} is absent; set MMREC_TEST_DATA to the folder of real test data")
        return folder / name

    return find


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++ compiler's name; a test that needs one is skipped where there is none."""
    found = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if found is None:
        pytest.skip("there is no C++ compiler; on Debian and Ubuntu: apt install g++")
    return found


@pytest.fixture(params=["x86-64-v2", "x86-64-v3", cpu.NATIVE], scope="module")
def isa(request: pytest.FixtureRequest, compiler: str) -> Iterator[str]:
    """A test runs with the kernels compiled for older processors too, and for this one."""
    name: str = request.param
    from mm_rec.native import library

    own = cpu.vector_isa()
    if name != cpu.NATIVE and own == "neon":
        pytest.skip(f"{name} is a level of x86-64")
    if name == "x86-64-v3" and own == "sse4_2":
        pytest.skip("this processor has no AVX2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.ISA_VARIABLE, name)
        library._find.cache_clear()
        yield name
    library._find.cache_clear()


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A real browser, for the pages; a test that needs it is skipped where there is none."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium; on Debian and Ubuntu: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()

from collections.abc import Callable

import pytest

from models.mock import golden
from tests.mock.golden.chips import Chips


@pytest.fixture(scope="session")
def device_2x4(open_layout: Callable):
    """A 2x4 mesh with golden execution on it."""
    device = open_layout("2x4sp0tp1").device
    if golden.active() is None:
        pytest.skip("this machine has cards: there is no golden execution on them")
    return device


@pytest.fixture
def chips(device_2x4) -> Chips:
    return Chips(device_2x4)


@pytest.fixture
def engine(device_2x4) -> golden.Engine:
    active = golden.active()
    assert active is not None
    return active

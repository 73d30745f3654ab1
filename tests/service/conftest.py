"""Fixtures of the service's tests."""

import pytest

from tests.service.postgres import Cluster


@pytest.fixture(scope="session")
def cluster():
    """A server of Postgres; a test that stops it starts it again."""
    made = Cluster()
    yield made
    made.remove()

"""Every backend that runs without a GPU goes through the same tests."""

import os
from collections.abc import Iterator

import pytest

from flatten_transformer.ops.cpp.build import unavailable
from flatten_transformer.ops.dispatch import VARIABLE


@pytest.fixture(scope="module", params=["portable", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Force a backend by the environment variable; of a module's scope, as hypothesis wants it."""
    name = str(request.param)
    if name == "cpp" and (reason := unavailable()):
        pytest.skip(f"no compiled kernel: {reason}")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    yield name
    if before is None:
        del os.environ[VARIABLE]
    else:
        os.environ[VARIABLE] = before

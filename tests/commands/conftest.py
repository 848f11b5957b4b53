"""Interpreted kernels are for their own tests: a benchmark does not race them."""

import pytest

from flatten_transformer.benchmark import machine


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(machine, "copy_gb_per_s", lambda _: 10.0)  # which takes half a second to measure

"""A model, data and a trainer small enough to train in tests, as in the tests of tasks."""

from tests.tasks.conftest import _one_thread, _quiet, fit, make_task  # noqa: F401

"""Settings of every test: hypothesis draws the same examples each time, parallel workers share the cores and compiled graphs."""

import logging
import os
import shutil
import tempfile

import torch
from hypothesis import settings

settings.register_profile("same_every_time", derandomize=True, deadline=None, database=None)
settings.load_profile("same_every_time")
logging.getLogger("torch.__trace").propagate = True  # else pytest listens, and PyTorch writes every graph out for it

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
else:  # alone, or the process that starts the workers, which inherit it
    # PyTorch finds compiled graphs by the names of their operators: those of an older clone may have other arguments.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="flatten-tests-")


def pytest_unconfigure() -> None:
    if not workers:
        shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)

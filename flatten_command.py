"""The console script ``flatten``.

It stands outside the package, whose ``__init__`` takes seconds: it imports torch and timm. Here the package is made known without
running that, so that help, lists and errors come at once; ``flatten_transformer.cli`` runs it before a command that needs it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec

_PACKAGE = "flatten_transformer"


def main() -> int:
    """Run the command line of the process and return its exit status."""
    spec = find_spec(_PACKAGE)
    assert spec is not None, "it is installed together with this file"
    sys.modules.setdefault(_PACKAGE, module_from_spec(spec))
    from flatten_transformer.cli import main as run

    return run()

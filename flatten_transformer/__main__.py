"""``python -m flatten_transformer`` is the command ``flatten``."""

import sys

from flatten_transformer.cli import main

sys.exit(main())

"""``python -m flatten_transformer`` is the command ``flatten``."""

import sys

try:
    from flatten_transformer.cli import main
except KeyboardInterrupt:  # which main answers from here on
    sys.exit(130)

sys.exit(main())

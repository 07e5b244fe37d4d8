"""``python -m modicum`` is the command line."""

import sys

from modicum.cli import main

sys.exit(main())

"""`python -m adex` is the command `adex`."""

import sys

from adex.cli import main

sys.exit(main())

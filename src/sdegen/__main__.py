"""`python -m sdegen`, the same as the command `sdegen`."""

import sys

from sdegen.cli import main

sys.exit(main())

"""`python -m spine VERB ...`: what the launcher runs."""

import sys

from spine.cli import main

sys.exit(main(sys.argv[1:]))

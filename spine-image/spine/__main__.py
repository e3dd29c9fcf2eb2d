"""`python -m spine VERB ...`: what the launcher runs."""

import sys

# Said here, where an older Python can still read the file.
if sys.version_info < (3, 11):  # noqa: UP036  # the host may have any Python
    sys.exit("spine: Python is too old\n  why: 3.11 is needed\n  fix: use Debian 12 or newer")

from spine.cli import main

sys.exit(main(sys.argv[1:]))

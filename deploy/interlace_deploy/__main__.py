"""`python -m interlace_deploy` is `interlace`."""

import sys

from interlace_deploy.cli import main

sys.exit(main())

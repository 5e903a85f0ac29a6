"""`python -m vpo_plugin.cli`: the same as `vpo`."""

import sys

from vpo_plugin.cli import main

sys.exit(main())

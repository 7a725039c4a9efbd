"""``python -m vmm_msi``."""

import sys

from vmm_msi.cli import main

sys.exit(main())

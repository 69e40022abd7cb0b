"""`python -m precisionlm`."""

import sys

from precisionlm.cli import main

sys.exit(main())

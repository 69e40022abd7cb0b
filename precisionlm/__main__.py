"""`python -m precisionlm`."""

import sys

from precisionlm.cli.main import main

sys.exit(main())

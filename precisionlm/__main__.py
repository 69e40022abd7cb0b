"""`python -m precisionlm`, and the command `precisionlm`."""

import sys

from precisionlm.cli.boundary import guarded


def start() -> int:
    """The command line; imported here, so that ctrl-C meanwhile is one line too."""

    def run() -> int:
        from precisionlm.cli.main import main

        return main()

    return guarded(run)


if __name__ == "__main__":
    sys.exit(start())

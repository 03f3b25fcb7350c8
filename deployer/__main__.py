"""`python -m deployer`, the same as the command."""

import sys

from deployer.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m recyclegpt`: the same as the `recyclegpt` command."""

import sys

from recyclegpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m recyclegpt`: the same as the `recyclegpt` command."""

import sys

from recyclegpt.commands.main import main

if __name__ == "__main__":
    sys.exit(main())

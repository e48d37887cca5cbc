"""``python -m sb3_rainbow.sweep suite.yml``."""

import sys

from sb3_rainbow.sweep.driver import main

if __name__ == "__main__":
    sys.exit(main())

"""
Train what a suite of ``suites.yml`` lists: ``python benchmarks/learning/run.py classic``. It is the sweep of ``docs/scale.md``
with the suites and the results of this folder: an interrupted suite goes on when it is started again.
"""

import argparse
import os
import sys
from pathlib import Path

from sb3_rainbow.sweep.driver import main

HERE = Path(__file__).parent

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], epilog="Other options are those of the sweep.")
    parser.add_argument("suite", help="name in suites.yml")
    parser.add_argument("--suites", type=Path, default=HERE / "suites.yml")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args, others = parser.parse_known_args()
    # The games of this folder, also for suites that lie elsewhere
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE)]))
    sys.exit(main([str(args.suites), "--suite", args.suite, "--out", str(args.out), *others]))

"""Every table and figure of a scale, one after the other, and one report of them.

    python -m experiments.all [--scale=small] [--parallel=2] [--config.FIELD=VALUE ...]

Tunes the peak rates, trains the shared runs, makes each experiment's page in results/EXPERIMENT/SCALE and gathers the
pages in results/REPORT.md. What is done is not done again.
"""

import subprocess
import sys
import time

from experiments import report


def main() -> int:
    """Runs them in order and stops at the first that fails."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    start = time.perf_counter()
    for number, name in enumerate(report.NAMES, 1):
        print(f"\n[{number}/{len(report.NAMES)}] {name}", file=sys.stderr, flush=True)
        status = subprocess.run([sys.executable, "-m", f"experiments.{name}", *sys.argv[1:]], check=False).returncode
        if status:
            return status
    report.main()
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

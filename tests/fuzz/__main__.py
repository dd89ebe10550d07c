"""Fuzz the doors of the package.

    python tests/fuzz --seed 1 --rounds 2000                   every fuzzer
    python tests/fuzz tables formulas --seed 1 --rounds 2000   some
    python tests/fuzz tables --seed 1 --first 17 --rounds 1    one try again

Prints the faults as they are found, then the counts; ends with 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # which has the dense algebra as well

from fuzz import FUZZERS  # noqa: E402
from fuzz.harness import closing, faults, run  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FUZZERS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first try")
    parser.add_argument("--rounds", type=int, default=200, help="tries of each fuzzer")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(FUZZERS)
    if unknown:
        parser.error(f"no fuzzer {', '.join(sorted(unknown))}: there are {', '.join(FUZZERS)}")
    chosen = {name: FUZZERS[name] for name in given.names or FUZZERS}
    found = run(chosen, given.seed, given.rounds, given.first, lambda line: print(line, flush=True))
    print("\n".join(closing(found)))
    return 1 if faults(found) else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m stacks show|diff|url ENV`: environments as data; `cloudsync env` and `url` end here."""

from __future__ import annotations

import sys

from stacks import environments
from stacks.description import described, differences, urls


def main(arguments: list[str]) -> int:
    match arguments:
        case ["show", name]:
            print(described(environments.load(name)))
        case ["url", name]:
            for what, url in urls(environments.load(name)):
                print(f"{what}  {url}")
        case ["diff", one, other]:
            found = differences(environments.load(one), environments.load(other))
            for where, here, there in found:
                print(f"{where}: {here} | {there}")
            return int(bool(found))
        case _:
            print("usage: python -m stacks show ENV | url ENV | diff ENV ENV", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except environments.EnvironmentRefused as refused:
        sys.exit(f"cloudsync: {refused}")

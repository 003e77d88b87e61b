"""``python -m lab.rehearsal.schemas CLOUD CHECKOUT``: reads what a provider says of its resources, and locks it.

Example: git clone https://github.com/hashicorp/terraform-provider-google
         python -m lab.rehearsal.schemas gcp terraform-provider-google          # writes gcp.yml beside this file
         python -m lab.rehearsal.schemas gcp terraform-provider-google --check  # exit code 1 if gcp.yml says otherwise
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
from pathlib import Path

from lab.rehearsal.schemas import lock
from lab.rehearsal.schemas.go_source import GoSourceError


def main() -> int:
    """The command line; the exit code is 0, 1 for a difference, or 2 for wrong arguments."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m lab.rehearsal.schemas", description=__doc__, formatter_class=form)
    parser.add_argument("cloud", choices=sorted(lock.sources()))
    parser.add_argument("checkout", type=Path, help="the git repository of the provider; it may be bare")
    parser.add_argument("--ref", default="HEAD", help="the commit to read (default: HEAD)")
    parser.add_argument("--check", action="store_true", help="write nothing; show what differs")
    chosen = parser.parse_args()
    try:
        now = lock.text(lock.read(chosen.cloud, lock.Checkout(chosen.checkout, chosen.ref)))
    except subprocess.CalledProcessError as fault:
        print(f"error: {chosen.checkout}: {fault.stderr.strip()} (give the provider's git repository)", file=sys.stderr)
        return 2
    except GoSourceError as fault:
        print(f"error: {chosen.checkout}: {fault} (the source has another form than this reads)", file=sys.stderr)
        return 2
    file = lock.HERE / f"{chosen.cloud}.yml"
    if not chosen.check:
        file.write_text(now, encoding="utf-8")
        print(file)
        return 0
    kept = file.read_text(encoding="utf-8")
    sys.stdout.writelines(difflib.unified_diff(kept.splitlines(True), now.splitlines(True), file.name, "checkout"))
    return int(now != kept)


if __name__ == "__main__":
    sys.exit(main())

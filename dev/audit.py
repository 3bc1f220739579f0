"""Asks OSV, a public service, for known vulnerabilities of the packages that are pinned for both images.

    python -m dev.audit                   0: none are known, 1: there are, 3: it could not be asked, nothing was audited
    python -m dev.audit --offline-passes  the last of them is said as loudly, and ends with 0: for a machine without the
                                          network, whose other results are wanted all the same

What could not be looked up is no clean bill, so no package is skipped.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINNED = tuple(ROOT / "requirements" / f"{name}.txt" for name in ("operator", "trainer"))
OSV_URL = "https://api.osv.dev/v1/query"


class Outcome(IntEnum):
    """What came of it, as an exit code."""

    CLEAN = 0
    VULNERABLE = 1
    NOT_AUDITED = 3


def main(words: Sequence[str] | None = None) -> int:
    """Audit the requirement files and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=PINNED, help="pinned requirements with hashes")
    parser.add_argument("--osv-url", default=OSV_URL, help="the service, or a mirror of it")
    parser.add_argument("--offline-passes", action="store_true", help="end with 0 where the service cannot be asked")
    arguments = parser.parse_args(words)
    outcomes = [_audit(file, arguments.osv_url) for file in arguments.files]
    if Outcome.VULNERABLE in outcomes:
        return Outcome.VULNERABLE
    if Outcome.NOT_AUDITED in outcomes:
        print(
            f"NOT AUDITED: {arguments.osv_url} could not be asked, so nothing is known of these packages. Run "
            "`make audit` where it can be reached (HTTPS_PROXY is heeded), or name a mirror: "
            "python -m dev.audit --osv-url URL.",
            file=sys.stderr,
        )
        return Outcome.CLEAN if arguments.offline_passes else Outcome.NOT_AUDITED
    return Outcome.CLEAN


def _audit(file: Path, osv_url: str) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        program = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
        service = ["--vulnerability-service", "osv", "--osv-url", osv_url]
        pinned = ["--strict", "--require-hashes", "--disable-pip", "--requirement", str(file)]
        done = subprocess.run(
            [*program, *service, *pinned, "--output", str(answer)], capture_output=True, text=True, check=False
        )
        if not answer.exists():
            why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            print(f"{file.name}: no answer: {why}", file=sys.stderr)
            return Outcome.NOT_AUDITED
        packages: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))["dependencies"]
    known = [(package, flaw) for package in packages for flaw in package["vulns"]]
    for package, flaw in known:
        mended = f"mended in {', '.join(flaw['fix_versions'])}" if flaw["fix_versions"] else "no version mends it yet"
        print(f"{file.name}: {package['name']} {package['version']}: {flaw['id']}: {mended}")
    print(f"{file.name}: {len(packages)} packages, {len(known)} known vulnerabilities")
    return Outcome.VULNERABLE if known else Outcome.CLEAN


if __name__ == "__main__":
    sys.exit(main())

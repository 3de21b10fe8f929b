"""Known vulnerabilities of the pinned requirements, by pip-audit; a word where its database cannot be reached."""

import json
import subprocess
import sys

COMMAND = ["uv", "tool", "run", "--from", "pip-audit==2.10.1", "pip-audit", "--no-deps", "--disable-pip"]
OPTIONS = ["--requirement", "requirements.txt", "--format", "json", "--progress-spinner", "off"]


def main() -> int:
    """1 if a pinned version has a known vulnerability, else 0."""
    try:
        done = subprocess.run([*COMMAND, *OPTIONS], capture_output=True, text=True, timeout=300)
        found = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        print(f"pip-audit could not run, so nothing was checked: {error!r}")
        return 0
    checked = [one for one in found if "skip_reason" not in one]
    if not checked:
        print("pip-audit could not reach its database, so nothing was checked")
        return 0
    bad = [(one["name"], one["version"], flaw["id"]) for one in checked for flaw in one["vulns"]]
    for name, version, flaw in bad:
        print(f"{name} {version}: {flaw}")
    print(f"pip-audit: {len(bad)} known vulnerabilities in {len(checked)} of {len(found)} requirements")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

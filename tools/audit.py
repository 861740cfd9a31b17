"""Known vulnerabilities of the pinned packages, by pip-audit. Exits with 1 where there is one, 2 where it could not tell."""

import json
import subprocess
import sys

flags = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
command = [sys.executable, "-m", "pip_audit", "-r", sys.argv[1], *flags]
done = subprocess.run(command, capture_output=True, text=True, check=False)
try:
    packages = json.loads(done.stdout)["dependencies"]
except (ValueError, KeyError):
    reason = (done.stderr.strip() or "it says nothing").splitlines()[-1]
    sys.exit(
        print(f"audit: pip-audit could not reach a vulnerability service: {reason}", file=sys.stderr) or 2
    )
skipped = [p["name"] for p in packages if "skip_reason" in p]
found = [(p, v) for p in packages for v in p.get("vulns", [])]
for package, vulnerability in found:
    fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
    print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
print(
    f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(found)} known vulnerabilities"
)
if skipped:  # pip-audit itself passes over them with exit status 0
    shown = ", ".join(skipped[:5]) + (" ..." if len(skipped) > 5 else "")
    print(
        f"audit: the vulnerability service did not answer for {len(skipped)} of them: {shown}",
        file=sys.stderr,
    )
sys.exit(1 if found else 2 if skipped else 0)

"""Brings what the charts need in a browser into a folder: `scripts.py FOLDER`. From npm, so that pages need no network;
where npm cannot fetch a package, a stand-in loads it from its CDN, and that is said."""

import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGES = {
    "vega@6": "build/vega.min.js",
    "vega-lite@6": "build/vega-lite.min.js",
    "vega-embed@7": "build/vega-embed.min.js",
}
STAND_IN = """document.write('<script src="https://cdn.jsdelivr.net/npm/{}/{}"></scr' + 'ipt>')\n"""


def bring(package: str, script: str, folder: Path) -> None:
    out = folder / Path(script).name
    command = ["npm", "pack", "--silent", "--pack-destination", folder, package]
    try:
        archive = (
            folder / subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        )
    except (OSError, subprocess.CalledProcessError):
        print(
            f"npm cannot fetch {package}: the book's charts will load it from cdn.jsdelivr.net",
            file=sys.stderr,
        )
        out.write_text(STAND_IN.format(package, script), "utf-8")
        return
    with tarfile.open(archive) as files:
        out.write_bytes(files.extractfile(f"package/{script}").read())
    archive.unlink()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for package, script in PACKAGES.items():
        bring(package, script, folder)

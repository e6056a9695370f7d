"""Build the jar beside `bita/metrics/spice_json/JsonEngine.java` from it; the same compiler gives the same bytes.

    python scripts/checks/build_spice_engine.py

Needs a `javac` of Java 17 (Debian: `apt install openjdk-17-jdk-headless`); what it makes runs on Java 8 and later.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bita.commands import program
from bita.errors import UserError
from bita.metrics.spice import ENGINE

SOURCE = ENGINE.with_name("JsonEngine.java")
SERVICE = "META-INF/services/javax.script.ScriptEngineFactory"
BEFORE_ALL = (1980, 1, 1, 0, 0, 0)
"""The date of every file in the jar, so that it depends on the source and the compiler alone."""


def compiler() -> str:
    """Return the compiler's name and version, such as `javac 17.0.15`; raises UserError where there is none."""
    try:
        return subprocess.run(
            ["javac", "-version"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            "javac: not there; install a JDK (Debian: apt install openjdk-17-jdk-headless)"
        ) from None


def source_hash() -> str:
    """Sha256 of the source, which the jar's manifest holds."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def build(jar: Path) -> None:
    """Compile the source and write the jar."""
    manifest = f"Manifest-Version: 1.0\r\nCreated-By: {compiler()}\r\nSource-SHA-256: "
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(jar, "w") as archive:
        subprocess.run(["javac", "--release", "8", "-Xlint:-options", "-d", folder, str(SOURCE)], check=True)
        members = {
            "META-INF/MANIFEST.MF": f"{manifest}{source_hash()[:32]}\r\n {source_hash()[32:]}\r\n\r\n".encode(),
            SERVICE: b"bita.JsonEngine$Factory\n",
        }
        for path in sorted(Path(folder).rglob("*.class")):
            members[str(path.relative_to(folder))] = path.read_bytes()
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, BEFORE_ALL), content)


@program
def main() -> int:
    """Build it in place."""
    build(ENGINE)
    print(f"{ENGINE}: {hashlib.sha256(ENGINE.read_bytes()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

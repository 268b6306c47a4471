"""Installs packages into the environment of the Python that runs it: `python .ci/install.py -e '.[dev]'`.

uv takes a quarter of pip's time. It doesn't read pip's settings (an index, a folder of wheels, a certificate), so they
are handed to it; where uv can't be had or fails, pip does the work and explains what is wrong.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

UV = "0.13.9"
ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


def settings_of_pip(listed: str) -> dict[str, str]:
    """Variables of uv for the lines of `pip config list`: files first, then the environment, which decides."""
    variables = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        if variable := SETTINGS.get(name.rpartition(".")[2]):
            separator = "," if variable == "UV_FIND_LINKS" else " "
            variables[variable] = separator.join(ast.literal_eval(value).split())
    return variables


def installed_by_uv(arguments: Sequence[str]) -> bool:
    """Tries it with uv, quietly."""
    quiet = {"capture_output": True, "text": True}
    if UV not in (found.version for found in distributions(name="uv")):
        got = subprocess.run([*PIP, "install", "--quiet", "--no-compile", "--only-binary", "uv", f"uv=={UV}"], **quiet)
        if got.returncode:
            return False
    listed = subprocess.run([*PIP, "config", "list"], **quiet).stdout
    # Like pip, which takes the best version of all indexes; uv's own rule is the first index that has the package.
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"} | settings_of_pip(listed)
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable, *arguments]
    return subprocess.run(command, env=variables | os.environ, **quiet).returncode == 0


def main() -> int:
    arguments = ["--constraint", str(ROOT / "constraints.txt"), *sys.argv[1:]]
    if installed_by_uv(arguments):
        return 0
    # Compiling all of it would take longer than the download; Python compiles what is imported, on first use.
    return subprocess.run([*PIP, "install", "--quiet", "--no-compile", "--use-pep517", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())

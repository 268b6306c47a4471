"""The installation by uv obeys pip's settings, and pip explains what neither can do."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/install.py"


def test_uv_is_handed_the_settings_of_pip():
    listed = (
        "global.index-url='https://mirror.example/simple'\n"
        "global.find-links='/wheels\\n/more'\n"
        "global.extra-index-url='https://a.example https://b.example'\n"
        "global.timeout='60'\n"
        ":env:.index-url='https://user:p=w@mirror.example/simple'\n"
        ":env:.cert='/certificates.pem'\n"
    )
    assert runpy.run_path(str(SCRIPT))["settings_of_pip"](listed) == {
        "UV_DEFAULT_INDEX": "https://user:p=w@mirror.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX": "https://a.example https://b.example",
        "SSL_CERT_FILE": "/certificates.pem",
    }


@pytest.mark.heavy
def test_what_no_index_has_is_explained_by_pip():
    command = [sys.executable, str(SCRIPT), "--no-index", "picollm-has-no-such-package"]
    done = subprocess.run(command, env=os.environ | {"PIP_NO_INDEX": "1"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No matching distribution found for picollm-has-no-such-package" in done.stderr

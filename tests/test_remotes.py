"""Push in one clone, pull in another: through a folder, and through a real SSH server on this machine."""

from __future__ import annotations

import getpass
import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from test_scenarios import NONE, views, wrong
from workspace import Workspace


def round_trip(project: Workspace, clone: Path, url: str, *options: tuple[str, str]) -> Workspace:
    """Push, clone, pull, sync. The remote's settings stay in .dvc/config.local, which git ignores."""
    for repository in (project, Workspace(clone)):
        if repository is not project:
            project.run("git", "clone", "-q", ".", str(clone))
        repository.run("dvc", "remote", "add", "-q", "--local", "-d", "store", url)
        for key, value in options:
            repository.run("dvc", "remote", "modify", "--local", "store", key, value)
    project.run("dvc", "push", "-q")
    copy = Workspace(clone)
    copy.run("dvc", "pull", "-q")
    assert views(copy) == (NONE, NONE) and wrong(copy) == []
    for repository in (project, copy):
        assert "store" not in (repository.path / ".dvc/config").read_text()
        assert repository.run("git", "status", "--porcelain") == ""
    return copy


@pytest.mark.slow
def test_through_a_folder(built, tmp_path):
    project = built.copy(tmp_path / "project")
    clone = round_trip(project, tmp_path / "clone", str(tmp_path / "store"))
    clone.set("report", title="of the clone")
    clone.snakemake("--quiet", "all")
    clone.commit("from the clone")
    clone.run("dvc", "push", "-q")
    project.run("dvc", "pull", "-q")
    project.run("git", "pull", "-q", str(clone.path), "main")
    project.run("dvc", "pull", "-q")
    assert views(project) == (NONE, NONE) and wrong(project) == []


@pytest.fixture
def sshd(tmp_path):
    """(port, key) of a server that lets this user in with a key of its own."""
    server = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if server is None or importlib.util.find_spec("dvc_ssh") is None:
        pytest.skip("needs the package openssh-server (apt-get install openssh-server) and pip's dvc-ssh")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its rights
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    process = subprocess.Popen([server, "-D", "-E", str(folder / "log"), "-f", str(folder / "config")])
    deadline = time.monotonic() + 20
    while subprocess.run(["bash", "-c", f"echo >/dev/tcp/127.0.0.1/{port}"], capture_output=True).returncode:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)
    yield port, folder / "user"
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_through_an_ssh_server(built, tmp_path, sshd):
    port, key = sshd
    project = built.copy(tmp_path / "project")
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/store"
    round_trip(project, tmp_path / "clone", url, ("keyfile", str(key)))
    assert len(list((tmp_path / "store/files/md5").rglob("*"))) > 40

"""Push in one clone, pull in another: through a folder, and through real servers of SSH and of S3 on this machine."""

from __future__ import annotations

import getpass
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_scenarios import NONE, views, wrong
from workspace import Workspace


def round_trip(project: Workspace, clone: Path, url: str, *options: tuple[str, str]) -> Workspace:
    """Pushes, clones, pulls and syncs. The remote's settings are in .dvc/config.local, which git ignores."""
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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(process: subprocess.Popen, port: int, log: Path) -> None:
    """Waits until something listens on the port."""
    deadline = time.monotonic() + 60
    while subprocess.run(["bash", "-c", f"echo >/dev/tcp/127.0.0.1/{port}"], capture_output=True).returncode:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.fixture
def sshd(tmp_path):
    """Starts an SSH server that accepts this user with a new key; returns (port, key)."""
    server = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if server is None or importlib.util.find_spec("dvc_ssh") is None:
        pytest.skip("needs the package openssh-server (apt-get install openssh-server) and pip's dvc-ssh")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = free_port()
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)  # needed by sshd to drop its privileges
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    process = subprocess.Popen([server, "-D", "-E", str(folder / "log"), "-f", str(folder / "config")])
    wait_for(process, port, folder / "log")
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


@pytest.mark.slow
def test_a_server_that_refuses_the_key_says_so_and_nothing_is_lost(built, tmp_path, sshd):
    port, _ = sshd
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    project = built.copy(tmp_path / "project")
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/store"
    project.run("dvc", "remote", "add", "-q", "--local", "-d", "store", url)
    project.run("dvc", "remote", "modify", "--local", "store", "keyfile", str(tmp_path / "other"))
    said = project.run("dvc", "push", ok=False)
    assert "Permission denied" in said and "Traceback" not in said, said
    assert not (tmp_path / "store").exists() and views(project) == (NONE, NONE)


@pytest.mark.slow
@pytest.mark.skipif(getpass.getuser() != "root", reason="a disk of one's own needs root")
def test_a_full_store_says_so_and_the_next_push_goes_on(built, tmp_path):
    project, store = built.copy(tmp_path / "project"), tmp_path / "store"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", store], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        project.run("dvc", "remote", "add", "-q", "--local", "-d", "store", str(store))
        said = project.run("dvc", "push", ok=False)
        assert "No space left" in said or "failed to push" in said, said
        assert "Traceback" not in said
        subprocess.run(["mount", "-o", "remount,size=64m", store], check=True)
        project.run("dvc", "push", "-q")
        clone = Workspace(tmp_path / "clone")
        project.run("git", "clone", "-q", ".", str(clone.path))
        clone.run("dvc", "remote", "add", "-q", "--local", "-d", "store", str(store))
        clone.run("dvc", "pull", "-q")
        assert views(clone) == (NONE, NONE) and wrong(clone) == []
    finally:
        subprocess.run(["umount", store], check=True)


@pytest.fixture
def s3(tmp_path):
    """Starts an in-memory server with S3's protocol; returns (address, bucket)."""
    if not all(importlib.util.find_spec(name) for name in ("dvc_s3", "moto", "flask_cors")):
        pytest.skip("needs pip's dvc-s3 and moto with flask and flask-cors")
    port, log = free_port(), tmp_path / "s3.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    wait_for(process, port, log)
    address = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")):
        yield address, "bucket"
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_through_a_server_of_s3(built, tmp_path, s3):
    address, bucket = s3
    project = built.copy(tmp_path / "project")
    secrets = (("access_key_id", "somebody"), ("secret_access_key", "secret"), ("region", "us-east-1"))
    round_trip(project, tmp_path / "clone", f"s3://{bucket}/picollm", ("endpointurl", address), *secrets)
    tracked = project.run("git", "grep", "-l", "secret_access_key", ok=None)
    assert ".dvc" not in tracked

"""Starts a real Slurm on this machine: munged, slurmctld and two slurmd on loopback, in one folder, stopped afterwards.

    python tests/slurm.py FOLDER [COMMAND ...]     # run a command, or a shell, in it; needs root and Debian's packages

Two nodes on one machine, so that one may be lost; their processors are shared with everything else here. No system
service is touched: keys, sockets, ports and state are the folder's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
PACKAGES = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
SYSTEM_PATHS = "/usr/sbin:/usr/local/sbin:/usr/bin"
NODES = ("one", "two")
CLIENTS = ("srun", "scontrol")  # that jobs call
CONFIG = """
ClusterName=picollm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# As in a container, without cgroups; memory is monitored instead of limited.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
KillWait=10
MinJobAge=86400
InactiveLimit=0
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory} State=UNKNOWN"
)


def missing() -> str | None:
    """Returns why Slurm can't be started here, or None if it can."""
    lacking = [name for name in DAEMONS if not shutil.which(name, path=SYSTEM_PATHS)]
    if lacking:
        return f"needs {', '.join(lacking)} ({PACKAGES})"
    return None if os.geteuid() == 0 else "needs root, to start Slurm's daemons"


@dataclass
class Cluster:
    """A running Slurm; `environment` is what its clients need.

    The plugin removes Slurm's variables from a job's environment, because a cluster has one configuration for all:
    wrappers of the clients restore it.
    """

    folder: Path
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)} -> {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, state: str = "all") -> dict[str, tuple[str, str]]:
        """Returns {Slurm's number: (state, rule)} of all jobs that Snakemake submitted."""
        rows = self.run("squeue", "--noheader", "--format=%i|%T|%k", f"--states={state}").splitlines()
        parts = (row.split("|") for row in rows)
        return {number: (name, comment.removeprefix("rule_")) for number, name, comment in parts}

    def wait_for(self, rule: str, state: str, seconds: float = 90) -> str:
        """Waits for a job of the rule in the state and returns its number. Fails if there is none."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for number, found in self.jobs().items():
                if found == (state, rule):
                    return number
            time.sleep(0.2)
        raise AssertionError(f"no job of {rule} came to {state}: {self.jobs()}")

    def start(self, name: str, *command: str) -> None:
        """Starts a daemon that ends with this process, however that ends."""
        log = open(self.folder / f"{name}.out", "ab")  # noqa: SIM115  the daemon's
        self.processes[name] = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", shutil.which(command[0], path=SYSTEM_PATHS) or command[0], *command[1:]],
            env=os.environ | self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def start_node(self, name: str) -> None:
        self.start(f"slurmd-{name}", "slurmd", "-D", "-f", f"{self.folder}/slurm.conf", "-N", name)

    def lose(self, node: str) -> None:
        """Kills the node's daemon and all its processes at once, as in a power failure."""
        daemon = self.processes.pop(f"slurmd-{node}")
        steps = [one for one in psutil.process_iter(["name"]) if one.info["name"] == "slurmstepd"]
        own = [one for one in steps if f"{self.folder}/slurmd-{node}.log" in {file.path for file in one.open_files()}]
        below = [child for one in own for child in one.children(recursive=True)]
        daemon.kill()
        daemon.wait()
        for one in (*own, *below):
            with suppress(psutil.NoSuchProcess):
                one.kill()

    def stop(self) -> None:
        """Ends every job, then the daemons, by their process ids."""
        for how in (["--full", "--signal=KILL"], []):
            command = ["scancel", "--user=root", *how]
            subprocess.run(command, env=os.environ | self.environment, capture_output=True)
        for name in sorted(self.processes, reverse=True):  # slurmd before slurmctld before munged
            process = self.processes[name]
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def cluster(folder: Path, cpus: int = 2, memory: int = 8000) -> Iterator[Cluster]:
    """Runs Slurm with two nodes, each with the given processors and MB, inside the `with` block."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "state").mkdir()
    host = socket.gethostname().split(".")[0]
    controller, *ports = free_ports(1 + len(NODES))
    nodes = [
        NODE.format(name=n, host=host, port=p, cpus=cpus, memory=memory) for n, p in zip(NODES, ports, strict=True)
    ]
    text = CONFIG.format(folder=folder, host=host, controller=controller, nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(text)
    (folder / "bin").mkdir()
    for name in CLIENTS:
        client = folder / "bin" / name
        client.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which(name)} "$@"\n')
        client.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    found = Cluster(folder)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    try:
        found.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        wait_until(found, lambda: (folder / "munge.socket").exists(), "munged")
        found.start("slurmctld", "slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        for name in NODES:
            found.start_node(name)
        wait_until(found, lambda: found_idle(found), "slurmctld and slurmd")
        yield found
    finally:
        found.stop()


def found_idle(cluster: Cluster) -> bool:
    command = ["sinfo", "--noheader", "--format=%T", "--Node", "--partition=main"]
    done = subprocess.run(command, env=os.environ | cluster.environment, capture_output=True, text=True)
    return done.stdout.split() == ["idle"] * len(NODES)


def wait_until(cluster: Cluster, ready, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        ended = [name for name, process in cluster.processes.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = [f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(cluster.folder.glob("*.[lo][ou][gt]"))]
            raise AssertionError(f"{what} did not start ({', '.join(ended)} ended)\n" + "\n".join(logs))
        time.sleep(0.2)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with cluster(Path(sys.argv[1]).absolute()) as running:
        command = sys.argv[2:] or [os.environ.get("SHELL", "bash")]
        sys.exit(subprocess.run(command, env=os.environ | running.environment).returncode)

"""The hub's real client with a server that implements the part of the hub's protocol that a download needs."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refusal
from test_corpora import TEXT, cut, source, write_hub_parquet

REVISION, FOLDER = "b" * 40, "wikitext-103-raw-v1"
FILES = [f"{FOLDER}/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")]
CARD = """---
configs:
- config_name: wikitext-103-raw-v1
  data_files:
  - split: train
    path: wikitext-103-raw-v1/train-*
---
"""
SCRIPT = """
import sys
from picollm.data.corpora import Corpus
from picollm.errors import PicollmError
try:
    print(len(list(Corpus("wikitext-103", None, "Salesforce/wikitext", "b" * 40, 1.0, 1).articles("train"))))
except PicollmError as error:
    sys.exit(str(error))
"""


class Hub(BaseHTTPRequestHandler):
    """Serves the tree of one commit, and its files with ranges, with the server's `faults`."""

    def log_message(self, *arguments):
        self.server.seen.append((self.command, self.path, self.headers.get("Range")))

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        name = self.path.split("?")[0].partition(f"/resolve/{REVISION}/")[2]
        if "/tree/" in self.path:
            self.answer(json.dumps([self.entry(name) for name in self.server.files]).encode(), {}, body)
        elif name in self.server.files:
            self.send_file(name, body)
        else:
            self.answer(b"", {}, body)

    def entry(self, name):
        data = self.server.files[name]
        oid = hashlib.sha256(data).hexdigest()
        lfs = {"oid": oid, "size": len(data), "pointerSize": 134}
        return {"type": "file", "path": name, "size": len(data), "oid": oid[:40], "lfs": lfs}

    def send_file(self, name, body):
        data = self.server.files[name]
        oid = hashlib.sha256(data).hexdigest()
        about = {"ETag": f'"{oid}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes", "X-Linked-Size": len(data)}
        start = 0
        if found := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(found[1])
            about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if "flip" in self.server.faults:
            data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        cut_at = (
            len(data) // 2 if body and "cut" in self.server.faults and len(data) > 20_000_000 and not start else None
        )
        self.answer(data[start:], about, body, cut_at, 206 if start else 200)

    def answer(self, data, headers, body, cut_at=None, status=200):
        self.send_response(status)
        for key, value in ({"Content-Length": len(data), "Content-Type": "application/json"} | headers).items():
            self.send_header(key, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data[:cut_at])
        self.close_connection = True


@pytest.fixture
def hub(tmp_path):
    for split in ("train", "validation", "test"):
        write_hub_parquet(tmp_path / "repository" / FOLDER, split, TEXT * 300)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {name: (tmp_path / "repository" / name).read_bytes() for name in FILES}
    server.files["README.md"] = CARD.encode()
    server.faults, server.seen = set(), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def read(tmp_path, server=None, **environment):
    """Runs in a separate process, because the client reads its settings once."""
    address = f"http://127.0.0.1:{server.server_port}" if server else "http://127.0.0.1:9"
    variables = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", **environment}
    variables |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.heavy
def test_files_come_once_and_are_read_without_the_hub_afterwards(tmp_path, hub):
    done = read(tmp_path, hub)
    assert (done.returncode, done.stdout) == (0, f"{len(cut(TEXT * 300))}\n"), done.stderr
    asked = len(hub.seen)
    assert read(tmp_path, hub).stdout == done.stdout and len(hub.seen) == asked, "nothing is asked again"
    assert read(tmp_path).stdout == done.stdout, "nor needed"


@pytest.mark.heavy
def test_a_broken_download_goes_on_where_it_stopped(tmp_path, hub):
    noise = pa.table({"text": [random.Random(i).randbytes(500).hex() for i in range(26_000)]})
    pq.write_table(noise, tmp_path / "noise.parquet", use_dictionary=False)  # 26 MB: the client writes 10 at a time
    hub.files[FILES[0]] = (tmp_path / "noise.parquet").read_bytes()
    hub.faults.add("cut")
    done = read(tmp_path, hub)
    assert done.returncode == 0, done.stderr
    assert any(found and int(found[6:-1]) >= 10_000_000 for _, path, found in hub.seen), hub.seen


@pytest.mark.heavy
def test_wrong_bytes_are_refused_by_their_checksum(tmp_path, hub):
    hub.faults.add("flip")
    done = read(tmp_path, hub)
    assert done.returncode == 1 and "has a wrong checksum: delete " in done.stderr.splitlines()[-1]
    Path(done.stderr.splitlines()[-1].split("delete ")[1].split(" and run")[0]).unlink()
    hub.faults.clear()
    assert read(tmp_path, hub).returncode == 0


def test_nobody_there_is_reported_soon_with_the_ways_out(tmp_path):
    done = read(tmp_path)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "can't be fetched from http://127.0.0.1:9" in line
    assert "corpus.source: local" in line and "corpus.source: enwiki-sample" in line


def test_a_local_copy_of_the_repository_needs_no_client(tmp_path):
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    text = {"train": TEXT, "validation": TEXT.replace("Alpha", "Omega"), "test": TEXT.replace("Alpha", "Psi")}
    for split in text:
        write_hub_parquet(tmp_path / FOLDER, split, text[split])
    hub = source("wikitext-103", hub=str(tmp_path))
    assert {split: list(hub.articles(split)) for split in text} == {split: cut(text[split]) for split in text}
    (tmp_path / FOLDER / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    assert "train-00000-of-00001.parquet is damaged" in refusal(lambda: list(hub.articles("train")))
    (tmp_path / FOLDER / "train-00000-of-00001.parquet").unlink()
    assert "has no train split" in refusal(lambda: list(hub.articles("train")))


def test_a_folder_of_another_layout_gives_a_one_line_error(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    text = refusal(lambda: list(source("wikitext-103", hub=str(tmp_path)).articles("train")))
    assert text == f"corpus.hub = {tmp_path} has no folder wikitext-103-raw-v1: it must have the hub's layout"

"""`picollm compare`: the page's contents for two revisions, and that it is written even if one of them lacks files."""

import json
import re
import shutil

import pytest
import yaml
from refusals import refusal
from workspace import Workspace

from picollm.pipeline.receipts import files_of
from picollm.pipeline.repository import cache_folder, object_path
from picollm.report.compare import compare, in_order, stage_rows

STAGES = {
    "pretrain": (["code.py", "train.txt"], "pretrain", ["reports/training.csv", "reports/training.json"], "training"),
    "classify_heads": (["reports/training.json"], "heads", ["reports/heads.json"], "heads"),
    "trt_benchmark": (["reports/training.json"], "benchmark", ["reports/benchmark.json"], "benchmark"),
    "draw_figures": (["reports/heads.json"], "heads", ["reports/figures"], None),
}
CPU, OTHER_CPU = {"model": "CPU A & Co", "cores": 2}, {"model": "CPU B", "cores": 2}
NEW = "new<b>$x$"  # a name that git allows, and that neither HTML nor a formula may take for its own


def dvc_yaml():
    stages = {}
    for name, (deps, section, outs, metrics) in STAGES.items():
        stages[name] = {"cmd": "true", "deps": deps, "params": [{"config.yaml": [section]}], "outs": outs}
        if metrics:
            stages[name]["metrics"] = [{f"reports/metrics/{metrics}.json": {"cache": False}}]
    return yaml.safe_dump({"stages": stages}, sort_keys=False)


def write(root, files):
    for path, value in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(value if isinstance(value, str) else json.dumps(value))


def run(root, *, labels, loss, speedup, cpu, picture, lr):
    """Writes the files of a run; `speedup`: ratio, low, high."""
    ratio, low, high = speedup
    hardware = {"device": "cpu", "cpu": cpu, "gpu": None, "memory_gib": 4.0, "threads": 2, "packages": {"torch": "2.0"}}
    shares = {label: {"share": labels.count(label) / 3, "low": 0.0, "high": 1.0} for label in ("local", "global")}
    heads = [
        {"name": f"L0H{i}", "label": label, "stability": 0.5 + i / 8, "unstable": i == 0}
        for i, label in enumerate(labels)
    ]
    write(root, {
        "config.yaml": yaml.safe_dump({"pretrain": {"lr": lr, "seed": 1}, "heads": {"k": 4}, "benchmark": {"n": 1}}),
        "reports/training.csv": f"step,tokens,loss,validation_loss\n0,100,{loss + 1},\n1,200,{loss},{loss}\n",
        "reports/training.json": {"device": "cpu", "loss": loss},
        "reports/metrics/training.json": {"validation_loss": loss, "steps": 2},
        "reports/heads.json": {"labels": shares, "heads": heads},
        "reports/metrics/heads.json": {"share_global": shares["global"]["share"]},
        "reports/benchmark.json": {"hardware": hardware, "results": [
            {"backend": "openvino", "batch": 1, "speedups": {"eager-fp32": {"ratio": ratio, "low": low, "high": high}}},
        ]},
        "reports/metrics/benchmark.json": {"openvino_b1_speedup": ratio},
        "reports/figures/same.svg": "<svg/>",
        "reports/figures/other.svg": f"<svg>{picture}</svg>",
        "reports/figures/manifest.json": {"figures": [{"file": "other.svg", "caption": "A figure", "group": ""}]},
    })  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    repository = Workspace(tmp_path_factory.mktemp("compare") / "repository")
    repository.path.mkdir()
    repository.run("git", "init", "-q")
    repository.run("dvc", "init", "-q")
    write(repository.path, {"dvc.yaml": dvc_yaml(), "code.py": "1", "train.txt": "text", "notes.md": "no run yet"})
    write(repository.path, {".gitignore": "/reports/*\n!/reports/metrics/\n"})
    repository.commit("start")
    repository.run("git", "tag", "start")
    labels = ["local", "global", "global"]
    run(repository.path, labels=labels, loss=3.0, speedup=(1.5, 1.4, 1.6), cpu=CPU, picture=1, lr=0.1)
    repository.run("dvc", "commit", "-f", "-q")
    repository.commit("old")
    repository.run("git", "tag", "old")
    write(repository.path, {"code.py": "2"})
    labels = ["local", "global", "local"]
    run(repository.path, labels=labels, loss=2.5, speedup=(1.7, 1.55, 1.8), cpu=CPU, picture=2, lr="<script>")
    repository.run("dvc", "commit", "-f", "-q")
    repository.commit("a <new> run")
    repository.run("git", "tag", NEW)
    run(repository.path, labels=labels, loss=2.5, speedup=(9.0, 8.0, 10.0), cpu=OTHER_CPU, picture=2, lr="<script>")
    repository.run("dvc", "commit", "-f", "-q", "trt_benchmark")
    repository.commit("elsewhere")
    repository.run("git", "tag", "elsewhere")
    return repository.path


@pytest.fixture
def project(built, tmp_path):
    shutil.copytree(built, tmp_path / "repository")
    return tmp_path / "repository"


def page(root, old="old", new=NEW):
    return compare(root, old, new, root.parent / "page.html").read_text()


def row(html, name):
    """Returns the cells of the table row that begins with a name, without mark-up."""
    lines = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    found = next(line for line in lines if line.split("</td>")[0].endswith((f">{name}", f">{name}</code>")))
    return [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in found.split("</td>")[:-1]]


def drop(root, path):
    """Removes an object of the current run from DVC's cache; returns its path."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    oid = next(out["md5"] for stage in lock.values() for out in stage["outs"] if out["path"] == path)
    file = object_path(cache_folder(root), oid)
    file.chmod(0o600)
    file.unlink()
    return file


def test_the_page_says_what_differs(built):
    html = page(built)
    assert row(html, "pretrain.lr") == ["pretrain.lr", "0.1", "&lt;script&gt;"]
    assert "pretrain.seed" not in html
    stage = next(line for line in html.splitlines() if line.startswith("<tr><td>pretrain"))
    assert re.findall(r"<code>(.*?)</code>", stage)[:2] == ["pretrain.lr", "code.py"]
    assert row(html, "L0H2") == ["L0H2", "global 0.75", "local 0.75"]
    assert "2 of 3 heads keep their label" in html
    assert row(html, "validation_loss")[:3] == ["validation_loss", "3", "2.5"]
    assert html.count("data:image/svg+xml;base64,") == 1 + 2  # the curves, and the figure that differs twice
    assert "<code>same.svg</code>" in html and "A figure" in html
    assert 'class="warn"' not in html


def test_the_page_needs_no_network_and_escapes_what_it_shows(built):
    html = page(built)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(|@import|<script""", html)
    assert "new<b>" not in html and "new&lt;b&gt;$x$" in html
    assert "a &lt;new&gt; run" in html


def test_intervals_decide_and_a_number_without_one_has_no_verdict(built):
    html = page(built)
    name, old, new, difference, verdict = row(html, "openvino_b1_speedup")
    assert (old, new, verdict) == ("1.5 1.4 … 1.6", "1.7 1.55 … 1.8", "within noise (intervals overlap)")
    assert difference == "+0.2 +13.3 %"
    assert row(html, "validation_loss")[-1] == ""


def test_intervals_that_are_apart_are_beyond_noise(project):
    labels = ["local", "global", "local"]
    run(project, labels=labels, loss=2.5, speedup=(9.0, 8.0, 10.0), cpu=CPU, picture=2, lr=1)
    assert row(page(project, NEW, "workspace"), "openvino_b1_speedup")[-1] == "beyond noise (intervals apart)"


def test_different_hardware_is_reported_and_gives_no_verdict(built):
    html = page(built, NEW, "elsewhere")
    assert "measured on different hardware: not comparable" in html
    assert "CPU A &amp; Co, 2 cores" in html and "CPU B, 2 cores" in html
    assert "different hardware" not in page(built)
    assert row(html, "openvino_b1_speedup")[-1] == "not comparable"
    assert "only the outputs differ" in html  # of trt_benchmark: it was measured again


def test_nothing_in_the_repository_changes(project):
    def stamps():
        files = [path for path in files_of(project, ".") if not path.startswith((".dvc/tmp", ".git/"))]
        return {path: (project / path).stat().st_mtime_ns for path in [*files, ".git/HEAD"]}

    before = stamps()
    page(project)
    assert stamps() == before


@pytest.mark.parametrize(
    "path", ["reports/heads.json", "reports/training.csv", "reports/figures", "reports/benchmark.json"]
)
def test_what_the_cache_lacks_is_reported_and_the_page_is_written(project, path):
    drop(project, path)
    shutil.rmtree(project / "reports/figures")  # a commit is not read from the current files
    html = page(project, "old", "elsewhere")
    assert f"{path} of elsewhere isn&#39;t in DVC&#39;s cache: `dvc fetch --all-commits` may fetch it" in html
    assert row(html, "validation_loss")[:3] == ["validation_loss", "3", "2.5"]


def test_a_damaged_object_is_not_shown(project):
    file = drop(project, "reports/heads.json")
    file.write_text(json.dumps({"labels": {}, "heads": [{"name": "L9H9", "label": "sink"}]}))
    html = page(project, "old", "elsewhere")
    assert "reports/heads.json of elsewhere is damaged" in html
    assert "L9H9" not in html


def test_the_workspace_is_read_as_it_lies_there(project):
    write(project, {"reports/heads.json": [], "config.yaml": "pretrain: {lr: 7}\nheads: {k: 4}\n"})
    html = page(project, "elsewhere", "workspace")
    assert row(html, "pretrain.lr") == ["pretrain.lr", "&lt;script&gt;", "7"]
    assert "config.yaml of workspace differs from that of the run in its dvc.lock: pretrain.lr, pretrain.seed" in html
    assert "reports/heads.json of workspace has a form that this version can&#39;t read" in html


def test_metrics_that_were_not_committed_are_reported(project):
    repository = Workspace(project)
    repository.run("git", "rm", "-q", "--cached", "reports/metrics/heads.json")
    repository.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "without")
    assert "reports/metrics/heads.json of HEAD is not committed" in page(project, "old", "HEAD")


def test_refusals_are_one_line_errors_and_write_nothing(built, tmp_path):
    output = tmp_path / "page.html"
    assert "'nope'" in refusal(compare, built, "nope", "old", output)
    assert "'--help'" in refusal(compare, built, "old", "--help", output)
    assert "start has no dvc.lock" in refusal(compare, built, "start", "old", output)
    assert "not a git repository" in refusal(compare, tmp_path, "old", "old", output)
    assert "can't be written" in refusal(compare, built, "old", "old", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_lock_is_refused(project):
    (project / "dvc.lock").write_text("<<<<<<< ours\nstages: [")
    assert "dvc.lock of workspace is damaged" in refusal(
        compare, project, "old", "workspace", project.parent / "x.html"
    )


def test_stages_come_in_the_graphs_order_even_in_a_circle():
    def stage(dep, out):
        return {"deps": [{"path": dep, "md5": "1"}], "outs": [{"path": out, "md5": "2"}]}

    assert in_order({"a": stage("y", "z"), "b": stage("source", "y"), "c": stage("z", "end")}) == ["b", "a", "c"]
    assert in_order({"a": stage("y", "x"), "b": stage("x", "y"), "first": stage("s", "t")}) == ["first", "a", "b"]
    rows = stage_rows({"gone": stage("s", "t")}, {"came": stage("s", "t")})
    assert {row["stage"]: row["status"] for row in rows} == {
        "came": "only in the new one",
        "gone": "only in the old one",
    }

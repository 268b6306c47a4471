"""`picollm compare OLD NEW`: compares two revisions of the project on one HTML page, read from git and DVC's cache.

If a revision lacks something, the page says so in its place and is still written.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from picollm.engine.grid import result_key
from picollm.errors import PicollmError
from picollm.files import write_text
from picollm.hardware import in_words
from picollm.pipeline.repository import cache_folder, git
from picollm.pipeline.show import configured, flatten
from picollm.report.gallery import MIME
from picollm.report.metric_files import METRIC_FILES
from picollm.report.revisions import Revision, open_revision, table_of
from picollm.report.style import ACCENT, LABEL_COLOURS, SECOND, legible, plt, save

FIGURES = "reports/figures"
TEMPLATES = Path(__file__).parent
OVERLAP, APART = "within noise (intervals overlap)", "beyond noise (intervals apart)"
METRICS = "reports/metrics/{}.json"
FACETS = ("params", "code", "inputs", "outputs")
# Parts of a hardware description that decide a speed; the others (memory, threads, versions) are listed separately.
MACHINE, DRIVER = ("device", "cpu.", "gpu"), ("gpu.driver", "gpu.cuda")
TIMINGS = ("_ms", "_per_second", "_speedup", "_share")  # endings of metrics that depend on the machine


# --- Parameters and stages


def changes(old: dict, new: dict) -> list[dict]:
    """Lists what differs between two flat tables as {name, old, new}, in their order."""
    keys = dict.fromkeys([*old, *new])
    rows = [{"name": key, "old": old.get(key, "not there"), "new": new.get(key, "not there")} for key in keys]
    return [row for row in rows if row["old"] != row["new"]]


def facets(entry: dict) -> dict[str, dict]:
    """Splits a stage's entry in dvc.lock into flat tables."""
    deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    return {
        "params": configured(entry),
        "code": {path: oid for path, oid in deps.items() if path.endswith(".py")},
        "inputs": {path: oid for path, oid in deps.items() if not path.endswith(".py")},
        "outputs": {out["path"]: out.get("md5") for out in entry.get("outs", [])},
    }


def in_order(lock: dict[str, dict]) -> list[str]:
    """Sorts stages in the graph's order. dvc.lock keeps removed stages, so there may be a cycle, left unsorted."""
    ordered, waiting = [], dict(sorted(lock.items()))
    while waiting:
        unmade = {out["path"] for entry in waiting.values() for out in entry.get("outs", [])}
        ready = [s for s, entry in waiting.items() if not any(dep["path"] in unmade for dep in entry.get("deps", []))]
        ordered += ready or waiting
        waiting = {stage: entry for stage, entry in waiting.items() if stage not in ordered}
    return ordered


def stage_rows(old: dict[str, dict], new: dict[str, dict]) -> list[dict]:
    """Lists {stage, status, params, code, inputs, outputs}, with the names of what differs, in the graph's order."""
    rows = []
    for stage in in_order(old | new):
        left, right = facets(old.get(stage, {})), facets(new.get(stage, {}))
        row = {facet: [change["name"] for change in changes(left[facet], right[facet])] for facet in FACETS}
        status = "only in the old one" if stage not in new else "only in the new one" if stage not in old else ""
        if not status and row["outputs"] and not (row["params"] or row["code"] or row["inputs"]):
            status = "only the outputs differ: measured again, or not reproducible"
        rows.append({"stage": stage, "status": status, **row})
    return rows


def parameters(side: Revision) -> dict[str, object]:
    """Reads config.yaml with dotted keys; adds a note if the recorded run had other values."""
    text = side.tracked("config.yaml")
    config = flatten(table_of(text or b""))
    ran = {key: value for entry in side.lock.values() for key, value in configured(entry).items()}
    edited = [key for key, value in ran.items() if config.get(key) != value]
    if not config:
        side.note("config.yaml", "is damaged" if text else "is missing")
    elif edited:
        side.note("config.yaml", f"differs from that of the run in its dvc.lock: {', '.join(edited)}")
    return config


# --- Numbers


def scalars(data: bytes) -> dict[str, float]:
    return {name: value for name, value in json.loads(data).items() if isinstance(value, int | float)}


def scalar(value: float | int | None) -> str:
    if value is None or isinstance(value, int):
        return "–" if value is None else f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def measured(data: bytes, chapter: str) -> dict[str, Any]:
    """Reads hardware, machine (the same in words) and sure, {metric: its uncertainty}, from a chapter's report.

    {value, low, high} has a number's 95 % bootstrap interval; {value, spread} has the spread of the underlying runs.
    """
    detail = json.loads(data)
    sure: dict[str, dict] = {}
    for label, row in detail["labels"].items() if chapter == "heads" else ():
        sure[f"share_{label.replace('-', '_')}"] = {"value": row["share"], "low": row["low"], "high": row["high"]}
    for row in detail["results"] if chapter == "benchmark" else ():
        key = result_key(row)
        if speedup := row.get("speedups", {}).get("eager-fp32"):
            sure[f"{key}_speedup"] = {"value": speedup["ratio"], "low": speedup["low"], "high": speedup["high"]}
        if times := row.get("latency_ms"):
            spread = f"90th percentile {scalar(times['p90'])}; {times['n']} runs"
            sure[f"{key}_p50_ms"] = {"value": times["p50"], "spread": spread}
    if chapter == "profile" and "needs" not in detail:
        steps = detail["steps"]
        spread = f"median {scalar(steps['median_ms'])}, 90th percentile {scalar(steps['p90_ms'])}; {steps['n']} steps"
        sure["step_ms"] = {"value": steps["mean_ms"], "spread": spread}
    hardware = detail.get("hardware", {}) if isinstance(detail, dict) else {}
    return {"sure": sure, "hardware": flatten(hardware), "machine": in_words(hardware) if hardware else ""}


def verdict(old: dict, new: dict, comparable: bool) -> str:
    """Compares two numbers' intervals; empty if the numbers are equal or one has no interval."""
    if old["value"] is None or new["value"] is None or old["value"] == new["value"]:
        return ""
    if not comparable:
        return "not comparable"
    if old["low"] is None or new["low"] is None:
        return ""
    return OVERLAP if old["low"] <= new["high"] and new["low"] <= old["high"] else APART


def chapter_of(old: Revision, new: Revision, name: str) -> dict:
    """Returns one chapter's metrics side by side, and the machines on which they were measured."""
    paths = [METRICS.format(name), f"reports/{name}.json"]
    sides = []
    known = paths[1] in old.outs | new.outs  # not every chapter has a report next to its metrics
    for side in (old, new):
        report = side.part(paths[1], partial(measured, chapter=name)) if known else {}
        sides.append((side.part(paths[0], scalars), report.get("sure", {}), report))
    hardware = [report.get("hardware", {}) for *_, report in sides]
    other = changes(*hardware) if all(hardware) else []
    differs = [row for row in other if row["name"].startswith(MACHINE) and row["name"] not in DRIVER]
    comparable = not differs and bool(hardware[0]) == bool(hardware[1])  # both machines may be unknown
    rows = []
    for metric in dict.fromkeys(key for values, *_ in sides for key in values):
        cells = []
        for values, sure, _ in sides:
            cell = {"value": values.get(metric), "low": None, "high": None, "spread": ""}
            certainty = sure.get(metric, {})
            cells.append(cell | certainty if certainty.get("value") == cell["value"] else cell)
        fair = comparable or not metric.endswith(TIMINGS)
        rows.append({"name": metric, "old": cells[0], "new": cells[1], "verdict": verdict(cells[0], cells[1], fair)})
    machines, also = [report.get("machine") for *_, report in sides], [row for row in other if row not in differs]
    return {"name": name, "paths": paths, "rows": rows, "machines": machines, "differs": differs, "also": also}


# --- Heads, curves, figures


def labels(data: bytes) -> dict[str, dict]:
    keys = ("name", "label", "stability", "unstable")
    return {head["name"]: {key: head[key] for key in keys} for head in json.loads(data)["heads"]}


def head_changes(old: dict[str, dict], new: dict[str, dict]) -> dict:
    """Counts the `heads` that both have and those with the `same` label; the others are in `rows`, kinds in `moves`."""
    common = [(old[name], new[name]) for name in old if name in new]
    rows = [(before, after) for before, after in common if before["label"] != after["label"]]
    moves = Counter((before["label"], after["label"]) for before, after in rows).most_common()
    alone = len(old.keys() ^ new.keys()) if old and new else 0
    return {"heads": len(common), "same": len(common) - len(rows), "moves": moves, "rows": rows, "alone": alone}


def curve(data: bytes) -> dict[str, list[tuple[int, float]]]:
    """Reads training.csv into (tokens, loss) of every step, and of the validations."""
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    columns = ("loss", "validation_loss")
    return {name: [(int(row["tokens"]), float(row[name])) for row in rows if row[name]] for name in columns}


def draw_curves(curves: dict[str, dict]) -> str:
    """Draws {legend: curve} into one picture, as a data: URI; empty if there is no curve."""
    if not any(curves.values()):
        return ""
    figure, axis = plt.subplots(figsize=(6.6, 3.4))
    for (name, points), colour in zip(curves.items(), (SECOND, ACCENT), strict=False):
        looks: dict[str, dict[str, Any]] = {
            "loss": {"alpha": 0.35, "linewidth": 0.8},
            "validation_loss": {"marker": "o", "markersize": 3},
        }
        for column, pairs in points.items():
            label = f"{'training' if column == 'loss' else 'validation'}, {legible(name)}"
            axis.plot(*zip(*pairs, strict=True), color=colour, label=label, **looks[column])
    axis.set(xlabel="training tokens", ylabel="loss, nats per token")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f} k")
    axis.legend(frameon=False, fontsize=8)
    picture = io.BytesIO()
    save(figure, picture, ".svg")
    return data_uri("curves.svg", picture.getvalue())


def data_uri(name: str, data: bytes | None) -> str:
    return f"data:{MIME[Path(name).suffix]};base64,{base64.b64encode(data).decode()}" if data else ""


def captions(data: bytes) -> dict[str, dict]:
    return {entry["file"]: entry for entry in json.loads(data)["figures"]}


def figures(old: Revision, new: Revision) -> dict[str, list]:
    """Returns {same: names, pairs: [{path, caption, group, pictures}]}; pictures are data: URIs, or empty."""
    sides = [(side, side.files(FIGURES)) for side in (old, new)]
    if not all(files for _, files in sides):
        return {"same": [], "pairs": []}
    manifest, entries, same, pairs = f"{FIGURES}/manifest.json", {}, [], []
    for side, files in sides:
        entries |= side.part(manifest, captions, files.get(manifest))
    for path in dict.fromkeys(path for _, files in sides for path in files if Path(path).suffix in MIME):
        name, oids = Path(path).name, {files.get(path) for _, files in sides}
        if len(oids) == 1:
            same.append(name)
            continue
        pictures = [data_uri(name, side.read(path, files[path])) if path in files else "" for side, files in sides]
        pairs.append({"path": path, "caption": name, "group": "", "pictures": pictures} | entries.get(name, {}))
    return {"same": same, "pairs": pairs}


# --- The page


def overview(page: dict) -> list[str]:
    stages, chapters, heads = page["stages"], page["chapters"], page["heads"]
    rows = [row for chapter in chapters for row in chapter["rows"]]
    differ = sum(row["old"]["value"] != row["new"]["value"] for row in rows)
    verdicts = Counter(row["verdict"] for row in rows)
    counts = ", ".join(f"{facet} of {sum(bool(row[facet]) for row in stages)}" for facet in FACETS)
    apart = [chapter["name"] for chapter in chapters if chapter["differs"]]
    lines = [
        (page["parameters"] is not None, f"Parameters: {len(page['parameters'] or ())} differ."),
        (stages, f"Stages: {counts} differ, of {len(stages)}."),
        (rows, f"Numbers: {differ} of {len(rows)} differ; {verdicts[OVERLAP]} {OVERLAP}, {verdicts[APART]} {APART}."),
        (heads["heads"], f"Heads: {heads['same']} of {heads['heads']} keep their label."),
        (apart, f"Timings measured on different hardware: not comparable ({', '.join(apart)})."),
    ]
    return [line for known, line in lines if known]


def compare(root: Path, old: str, new: str, output: Path) -> Path:
    """Writes the page that compares two revisions (commit, tag, branch, or `workspace`); returns its path.

    Raises PicollmError if a revision is unknown or records no run, or if the file can't be written.
    """
    git(root, "rev-parse", "--git-dir")  # first, so that a folder outside a repository is reported as such
    cache = cache_folder(root)
    sides = before, after = open_revision(root, cache, old), open_revision(root, cache, new)
    known = before.outs | after.outs
    configs = [parameters(side) for side in sides]
    page = {
        "sides": sides,
        "parameters": changes(*configs) if all(configs) else None,
        "stages": stage_rows(before.lock, after.lock),
        "chapters": [chapter_of(before, after, name) for name in METRIC_FILES if METRICS.format(name) in known],
        "heads": head_changes(*(side.part("reports/heads.json", labels) for side in sides)),
        "curves": draw_curves({side.name: side.part("reports/training.csv", curve) for side in sides}),
        "figures": figures(before, after),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["scalar"] = scalar
    style = Markup((TEMPLATES / "html/style.css").read_text(encoding="utf-8"))  # the same as the report's
    template = environment.from_string((TEMPLATES / "compare.html.j2").read_text(encoding="utf-8"))
    html = template.render(page, lines=overview(page), style=style, colours=LABEL_COLOURS, chips=(SECOND, ACCENT))
    try:
        write_text(output, html)
    except OSError as error:
        raise PicollmError(f"{output} can't be written ({error.strerror}): name another file") from None
    return output

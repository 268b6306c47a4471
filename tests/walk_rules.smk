"""Five small rules in the place of the project's sixteen, for tests/test_walk.py: a source, a folder, a metric, a page."""


rule pack:
    input:
        text="corpus.txt",
    output:
        manifest="data/pack/manifest.json",
    log:
        "logs/pack.log",
    params:
        cfg=sections("tokens"),
        code=fingerprint("pack"),
    script:
        "../workflow_scripts/pack.py"


rule train:
    input:
        pack="data/pack/manifest.json",
    output:
        weights="data/weights.bin",
        report="reports/train.json",
        metrics="reports/metrics/train.json",
    log:
        "logs/train.log",
    params:
        cfg=sections("pretrain", "compute"),
        code=fingerprint("train"),
    script:
        "../workflow_scripts/train.py"


rule heads:
    input:
        weights="data/weights.bin",
        sentences=CONFIG["attention"]["sentences"],
    output:
        report="reports/heads.json",
        metrics="reports/metrics/heads.json",
    log:
        "logs/heads.log",
    params:
        cfg=sections("heads"),
        code=fingerprint("heads"),
    script:
        "../workflow_scripts/heads.py"


rule clusters:
    input:
        report="reports/heads.json",
    output:
        report="reports/clusters.json",
        arrays="data/clusters.npz",
    log:
        "logs/clusters.log",
    params:
        cfg=sections("clusters"),
        code=fingerprint("clusters"),
    script:
        "../workflow_scripts/clusters.py"


rule page:
    input:
        train="reports/train.json",
        clusters="reports/clusters.json",
        template="picollm/report/html/data.html.j2",
    output:
        report="reports/final.html",
    log:
        "logs/page.log",
    params:
        cfg=sections("report"),
        code=fingerprint("page"),
    script:
        "../workflow_scripts/page.py"

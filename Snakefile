"""picollm: WikiText in, a small transformer, its attention explained, an engine measured, one report out.

    snakemake --cores all reports/final.html

The rules are in rules/, one file per topic; their implementation is in picollm/, their parameters in config.yaml.
"""

from snakemake.utils import min_version

min_version("9.0")


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/model.smk"
include: "rules/attention.smk"
include: "rules/mechanisms.smk"
include: "rules/engine.smk"
include: "rules/report.smk"
include: "rules/sweep.smk"


rule all:
    default_target: True
    input:
        "reports/final.html",


try:
    if workflow.is_main_process:
        check_writable(stages(), ROOT)
        check_dvc_yaml(
            stages(),
            ROOT / "dvc.yaml",
            write=bool(os.environ.get("PICOLLM_WRITE_DVC_YAML")),
        )
        guard()
except PicollmError as error:
    stop(error)
except KeyboardInterrupt:
    stop("stopped from the keyboard")


onstart:
    begin()


onsuccess:
    end()
    track()


onerror:
    end()
    track()

"""What each head does: chance-corrected statistics, bootstrap intervals, labels, and the same for untrained models."""

from typing import TYPE_CHECKING

from picollm.attention.census import census, metrics, table
from picollm.attention.labels import Thresholds
from picollm.attention.maps import flatten, load_categories
from picollm.attention.null import null_values
from picollm.data.files import write_json, write_text
from picollm.model.checkpoint import load_config
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    cfg = snakemake.params.cfg["heads"]
    # One thread whatever the config says: on sentences this short a second one gains nothing, and on a busy machine of
    # two cores it made each map 80 times slower (7 ms against 570).
    device = set_up(snakemake.params.cfg["compute"]["device"], threads=1)

    categories = load_categories(snakemake.input.maps)
    _, ids, number = flatten(categories)
    null = null_values(
        load_config(snakemake.input.config),
        ids,
        number,
        window=cfg["window"],
        models=cfg["null_models"],
        seed=cfg["seed"],
        device=device,
    )
    report = census(
        categories,
        null=null,
        configured=Thresholds(cfg["kappa"], cfg["content"], cfg["broad"], cfg["sink"]),
        window=cfg["window"],
        bootstraps=cfg["bootstraps"],
        seed=cfg["seed"],
    )
    write_json(snakemake.output.report, report)
    write_text(snakemake.output.table, table(report))
    write_json(snakemake.output.metrics, metrics(report))

"""The five lines that summarise a run."""

import pytest
from page_inputs import chapters

from picollm.errors import PicollmError
from picollm.files import write_json
from picollm.report.metric_files import METRIC_FILES
from picollm.report.summary import clusters_line, five_lines, lines


def metrics():
    data = {"train_articles": 1096, "train_tokens": 640_000, "validation_tokens": 70_000, "test_tokens": 60_000}
    clusters = {"clusters": 4, "stable_clusters": 3, "rand_layers": 0.12, "rand_labels": 0.34}
    return {"data": data, "training": chapters()["training"], "clusters": clusters}


def test_the_five_lines():
    data, model, heads, clusters, speed = lines(metrics(), chapters()["heads"], chapters()["benchmark"])
    assert data == "Data: 1,096 articles, 640,000 training tokens, 70,000 for validation, 60,000 for test."
    assert "35.3 M parameters after 61,440 tokens: test loss 6.28 nats, about as well as a 4-gram with" in model
    assert "a cache of the row (4-gram 6.50, with the cache 6.30)" in model
    assert heads == (
        "Heads: of 4, 1 diagonal, 2 global, 1 sink; in untrained models 75% come out as global, in sharpened "
        "untrained ones 12% as token-specific."
    )
    assert "Families of heads: 4, 3 of them stable" in clusters and "layers 0.12, with classes 0.34" in clusters
    none = metrics()["clusters"] | {"clusters": 0, "silhouette": 0.14, "structure_p": 0.3}
    assert "Families of heads: none" in clusters_line(none) and "silhouette 0.14, p = 0.30" in clusters_line(none)
    assert speed == ("Speed, batch 1: openvino-bf16 is 2.50x eager fp32 (95 % 2.25 to 2.75: faster) on CPU & Co <9>; "
                     "TensorRT: not run: no NVIDIA GPU.")  # fmt: skip
    worse, alone = chapters(), chapters()
    worse["training"] |= {"test_loss": 6.7, "test_bigram_loss": 6.9}
    assert (
        "better than a bigram, worse than a 4-gram"
        in lines(metrics() | {"training": worse["training"]}, worse["heads"], worse["benchmark"])[1]
    )
    alone["benchmark"]["results"] = alone["benchmark"]["results"][:1]
    assert "no backend other than eager fp32 ran" in lines(metrics(), alone["heads"], alone["benchmark"])[4]


@pytest.mark.parametrize("missing", [*(f"metrics/{name}" for name in METRIC_FILES), "heads", "benchmark"])
def test_five_lines_from_files_and_the_one_that_is_missing(tmp_path, missing):
    for name in METRIC_FILES:
        write_json(tmp_path / "metrics" / f"{name}.json", metrics().get(name, {}))
    for name in ("heads", "benchmark"):
        write_json(tmp_path / f"{name}.json", chapters()[name])
    assert five_lines(tmp_path) == lines(metrics(), chapters()["heads"], chapters()["benchmark"])
    (tmp_path / f"{missing}.json").unlink()
    with pytest.raises(PicollmError) as caught:
        five_lines(tmp_path)
    assert str(caught.value) == f"{tmp_path / missing}.json is missing: check the path, or run the rule that writes it"

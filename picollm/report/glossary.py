"""Defines the project's terms once: docs/glossary.md lists all of them, the report those that it uses."""

from typing import NamedTuple


class Term(NamedTuple):
    """A definition and its source: a publication, or the module or page that implements or explains the term."""

    text: str
    source: str
    in_report: bool = False


TERMS = {
    "ablation": Term(
        "A head's output is replaced by its mean over training text; the increase of the loss says what the head "
        "contributed.",
        "picollm/mechanisms/ablation.py",
        in_report=True,
    ),
    "accuracy gate": Term(
        "The comparison of a backend's logits with those of eager fp32, before it is timed: a backend that fails it "
        "has no speed-up.",
        "docs/engines.md",
    ),
    "artefact": Term(
        "What a rule writes and DVC stores: a file, or a folder with a manifest.",
        "docs/files.md",
    ),
    "backend": Term(
        "One runtime at one precision, for example `openvino-bf16`.",
        "picollm/engine/backends/backend.py",
    ),
    "broad share": Term(
        "The entropy of a head's attention divided by its largest possible value: 1 is uniform.",
        "picollm/attention/measures.py",
        in_report=True,
    ),
    "cell": Term(
        "One output at one batch size of the benchmark.",
        "picollm/engine/grid.py",
    ),
    "chapter": Term(
        "A part of the page `reports/final.html`.",
        "picollm/report/page.py",
    ),
    "class": Term(
        "The label of a head, by the first rule that applies: sink (less than 10 % of its attention is off the first "
        "position), diagonal (its own position), local (the last few positions), token-specific (a named set of keys), "
        "content-based (neither uniform nor explained by distance), global (nearly uniform), mixed (none of these).",
        "picollm/attention/labels.py",
    ),
    "cluster": Term(
        "A group of heads that attend alike, found by average linkage of the distances between their rows; in the "
        "probes, a group of items that share words.",
        "picollm/attention/clusters.py",
    ),
    "content share": Term(
        "The part of a head's attention that is neither uniform nor explained by distance: it depends on what the key "
        "is.",
        "picollm/attention/measures.py",
        in_report=True,
    ),
    "false discovery rate": Term(
        "The expected share of false results among those that are called real. q is the smallest rate at which a "
        "result is called real.",
        "Benjamini & Hochberg 1995",
        in_report=True,
    ),
    "4-gram with a cache": Term(
        "A Kneser-Ney model of four consecutive tokens, mixed with the frequencies of earlier tokens of the same row: "
        "what counting alone achieves.",
        "picollm/data/kneser_ney.py",
        in_report=True,
    ),
    "gold mark": Term(
        "A pair of words in a test sentence that grammar connects, for example subject and verb.",
        "picollm/attention/sentences.yaml",
    ),
    "induction head": Term(
        "A head that finds an earlier occurrence of the current token and writes what followed it there.",
        "Olsson et al. 2022",
        in_report=True,
    ),
    "interaction": Term(
        "What two heads cost together beyond the sum of what each costs alone: above 0, each hides the loss of the "
        "other.",
        "picollm/mechanisms/redundancy.py",
        in_report=True,
    ),
    "kappa": Term(
        "Attention mass on a set of keys minus the mass under uniform attention, divided by the largest possible value "
        "of that difference: 0 is chance at any length, 1 is all of the mass. In a row of 5 keys a weight of .6 on one "
        "of them is (.6 - .2) / (1 - .2) = .5.",
        "picollm/attention/measures.py",
        in_report=True,
    ),
    "logit lens": Term(
        "The model's output read after each layer, as if the model ended there.",
        "nostalgebraist 2020",
        in_report=True,
    ),
    "manifest": Term(
        "`manifest.json` of an artefact of many files: name, size and sha256 of each, written last.",
        "picollm/manifest.py",
    ),
    "margin": Term(
        "The distance of a statistic to the threshold of its class, in standard deviations of the bootstrap.",
        "picollm/attention/labels.py",
    ),
    "minimal pair": Term(
        "Two texts that differ in what should follow, and one word that fits only the first: the model should give it "
        "more probability there.",
        "picollm/mechanisms/minimal_pairs.py",
    ),
    "nats": Term(
        "Unit of the loss, with the natural logarithm: 1 nat less makes the right token 2.7 times as likely.",
        "picollm/model/loss.py",
        in_report=True,
    ),
    "noise band": Term(
        "How much the baseline or the fastest backend, whichever is more, differs from a second copy of itself in the "
        "same run; a speed-up inside it is no difference.",
        "docs/engines.md",
    ),
    "onset": Term(
        "The first snapshot from which a head's complete interval stays above the threshold of an effect.",
        "picollm/mechanisms/emergence.py",
    ),
    "original, the": Term(
        "The notebook whose claims the project checks: a model of 35.3 M parameters, 8 layers of 7 heads, trained on a "
        "fifth of WikiText-103.",
        "picollm/report/findings.py",
    ),
    "positional share": Term(
        "What the distance to the key explains of a head's attention, fitted on the other half of the sentences.",
        "picollm/attention/measures.py",
        in_report=True,
    ),
    "preset": Term(
        "A file in `presets/` with the values that differ from the default configuration.",
        "docs/configuration.md",
    ),
    "probe": Term(
        "A test of one ability of the model, by attention from pronoun to candidate or by minimal pairs.",
        "picollm/mechanisms/probes.py",
    ),
    "receipt": Term(
        "What a job reports as its last act: code, parameters, and md5 of its inputs and outputs.",
        "picollm/pipeline/receipts.py",
    ),
    "row": Term(
        "`tokens.context` + 1 consecutive tokens of the packed text: one training example. Of an attention map: the "
        "weights of one query.",
        "picollm/data/packing.py",
    ),
    "seal": Term(
        "A digest of the state in which Snakemake and DVC last agreed; while it holds, a run starts without a sync.",
        "picollm/pipeline/seal.py",
    ),
    "set aside": Term(
        "Moved to `aside/TIME/` because neither dvc.lock nor a finished run accounts for it; never deleted.",
        "docs/agreement.md",
    ),
    "shard": Term(
        "An Arrow file with up to `tokens.shard_rows` rows of packed text.",
        "picollm/data/packing.py",
    ),
    "silhouette": Term(
        "How much nearer a head is to its own cluster than to the next, from -1 to 1; below .25 there is no "
        "substantial structure.",
        "Kaufman & Rousseeuw 1990",
        in_report=True,
    ),
    "sharpened": Term(
        "Describes an untrained model whose queries are scaled until each layer's attention is as far from uniform as "
        "the trained model's: what chance gives to heads with logits as large.",
        "picollm/attention/controls.py",
        in_report=True,
    ),
    "sink": Term(
        "The first position, where many models put attention that has nowhere else to go. It is removed before "
        "anything else is measured, whether or not it is used so.",
        "Xiao et al. 2024",
        in_report=True,
    ),
    "slice": Term(
        "A part of the training split that one cluster job tokenizes (`tokens.slices`).",
        "picollm/data/packing.py",
    ),
    "snapshot": Term(
        "The weights at training step 0, 1, 2, 4, ..., in bfloat16, for the analysis of emergence; a checkpoint, in "
        "contrast, is what an interrupted run resumes from.",
        "docs/training.md",
    ),
    "stability": Term(
        "The share of bootstraps of the sentences that give a head the same class. It says nothing about another "
        "training run.",
        "picollm/attention/labels.py",
        in_report=True,
    ),
    "tag": Term(
        "What a local or token-specific head looks for: the previous token, or a named set of keys.",
        "picollm/attention/key_sets.py",
    ),
    "untrained model": Term(
        "A model of the same shape with random weights, which gets the same analysis: what the method finds where "
        "there is nothing to find.",
        "picollm/attention/controls.py",
    ),
    "window": Term(
        "Of `heads.window`: the largest distance that counts as local. Of the ablation: a run of consecutive "
        "validation tokens, the unit of resampling.",
        "docs/heads.md",
    ),
}


def for_report(term: Term) -> str:
    """Returns the definition, with its publication if any; paths mean little to a reader of the report."""
    return term.text if "/" in term.source else f"{term.text} ({term.source})"


GLOSSARY = {name: for_report(term) for name, term in TERMS.items() if term.in_report}

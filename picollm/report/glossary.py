"""The report's terms, each said once: on hover where it is used, and at the end of the page."""

GLOSSARY = {
    "kappa": "Attention mass on a set of keys less what uniform attention puts there, over the most that it could "
    "have: "
    "0 is chance at any length, 1 is all. In a row of 5 keys a weight of .6 on one of them is (.6 - .2) / (1 - .2) = "
    ".5.",
    "sink": "The first position, which takes what attention has nowhere else to go (Xiao et al. 2024). It is taken out "
    "before anything else is measured.",
    "broad share": "The entropy of a head's attention over the most that it could be: 1 is uniform.",
    "positional share": "What the distance to the key explains of a head's attention, fitted on the other half of the "
    "sentences.",
    "content share": "What is neither uniform nor explained by distance: it depends on what the key is.",
    "as peaked": "An untrained model whose queries are scaled until each layer's attention is as far "
    "from "
    "uniform as the trained model's: what chance gives to heads with logits as large.",
    "stability": "The share of resampled sentences in which a head gets the same class. It says nothing of another "
    "training.",
    "silhouette": "How much nearer a head is to its own cluster than to the next, -1 to 1; below .25 there is no "
    "structure to speak of (Kaufman & Rousseeuw 1990).",
    "interaction": "What two heads cost together beyond what each costs alone: above 0 each hides the loss of the "
    "other.",
    "induction head": "A head that finds where the current token stood before and writes what followed it there "
    "(Olsson "
    "et al. 2022).",
    "logit lens": "The model read out after each layer, as if it ended there (nostalgebraist 2020).",
    "ablation": "A head's output is replaced by its mean over training text; the loss says what was missed.",
    "nats": "Loss in units of the natural logarithm: 1 nat less makes the right token 2.7 times as likely.",
    "false discovery rate": "Of the results that are called real, the share that is expected not to be (Benjamini & "
    "Hochberg 1995). q is the smallest rate at which a result is called real.",
    "4-gram with a cache": "Kneser-Ney counts of four tokens in a row, mixed with the tokens that already stood in the "
    "row: what counting alone achieves.",
}

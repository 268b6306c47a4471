"""Generates the items of the linguistic probes from this project's own templates.

Every cue that needs no language is balanced: which candidate comes first, the number of a subject, which of two texts
fits, and if that is the negated one. Items that share words form one cluster, as large as every other of its kind;
intervals and p are computed over clusters, not items. Items are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from picollm.attention.sentences import as_wikitext


@dataclass(frozen=True)
class Reference:
    """A text with a pronoun and two candidates before it, in order of mention; spans are characters [start, end).

    `gold` and `subject` are indices of candidates; `cluster` is the number of the pair of words.
    """

    text: str
    candidates: tuple[tuple[int, int], tuple[int, int]]
    pronoun: tuple[int, int]
    gold: int
    subject: int
    cluster: int


@dataclass(frozen=True)
class Pair:
    """A minimal pair: a model is right if the target is likelier after the good text than after the bad one.

    It has one target after two texts, not two after one (BLiMP's two-prefix method), so that the word's frequency, by
    which a model of few words would otherwise answer, cancels out. `words` are the words that the cluster's pairs test.
    """

    cluster: int
    good: str
    bad: str
    target: str
    words: tuple[str, ...]


# Cues of gender only, not of number: "they" can mean both candidates together.
GENDERS = [
    ("king", "queen"), ("father", "mother"), ("son", "daughter"), ("brother", "sister"), ("husband", "wife"),
    ("actor", "actress"), ("prince", "princess"), ("man", "woman"), ("boy", "girl"), ("uncle", "aunt"),
    ("lord", "lady"), ("duke", "duchess"), ("nephew", "niece"), ("emperor", "empress"), ("monk", "nun"),
    ("grandfather", "grandmother"),
]  # fmt: skip
# {0} and {1} are the candidates in order of mention; the second field says which of them is the first clause's subject.
FRAMES = [
    ("The {0} met the {1} in London, and then {p} left the city", 0),
    ("The {0} saw the {1} near the river before {p} went home", 0),
    ("The {0} wrote to the {1} for many years, although {p} was ill", 0),
    ("After the {0} had found the {1}, {p} moved to France", 0),
    ("In the house of the {0}, the {1} read a book before {p} died", 1),
    ("With the help of the {0}, the {1} built a church, and later {p} lived there", 1),
]


def references(style: str = "plain") -> list[Reference]:
    """Builds both orders of each pair of words with both pronouns, in every frame, in the training text's style."""
    items = []
    for (cluster, pair), (text, subject) in product(enumerate(GENDERS), FRAMES):
        text = as_wikitext(text) if style == "wikitext" else text
        for order, cue in product((0, 1), (0, 1)):
            mentioned = (pair[order], pair[1 - order])
            gold = cue if order == 0 else 1 - cue
            items.append(_reference(text, mentioned, ("he", "she")[cue], gold, subject, cluster))
    return items


def _reference(text: str, mentioned: tuple[str, str], pronoun: str, gold: int, subject: int, cluster: int) -> Reference:
    before, rest = text.split("{0}")
    middle, rest = rest.split("{1}")
    gap, end = rest.split("{p}")
    spans, written = [], ""
    for lead, word in zip((before, middle, gap), (*mentioned, pronoun), strict=True):
        written += lead
        spans.append((len(written), len(written) + len(word)))
        written += word
    return Reference(written + end, (spans[0], spans[1]), spans[2], gold, subject, cluster)


# Two neighbouring rows form a cluster: each is the other's attractor.
NOUNS = [
    ("church", "churches"), ("song", "songs"), ("book", "books"), ("game", "games"), ("city", "cities"),
    ("film", "films"), ("ship", "ships"), ("school", "schools"), ("house", "houses"), ("river", "rivers"),
    ("band", "bands"), ("team", "teams"), ("road", "roads"), ("bridge", "bridges"), ("tree", "trees"),
    ("island", "islands"), ("bird", "birds"), ("horse", "horses"), ("battle", "battles"), ("army", "armies"),
    ("album", "albums"), ("player", "players"), ("storm", "storms"), ("train", "trains"),
]  # fmt: skip
VERBS = [("was", "were"), ("is", "are"), ("has", "have")]
BETWEEN = ["The {s} near the {a}", "The {s} seen by the {a}"]


def agreement() -> Iterator[Pair]:
    """Yields pairs in which the verb agrees with the subject, not with a nearer noun of the other number."""
    for between, verbs, (n, noun), number in product(BETWEEN, VERBS, enumerate(NOUNS), (0, 1)):
        good, bad = (between.format(s=noun[k], a=NOUNS[n ^ 1][1 - k]) for k in (number, 1 - number))
        yield Pair(n // 2, good, bad, " " + verbs[number], NOUNS[n & ~1] + NOUNS[n | 1])


PEOPLE = ["man", "king", "author", "player", "officer", "woman"]
# A word that only a negation licenses, one that it makes unlikelier, and two contexts as (negated, not negated). No two
# clusters share either word: a model without this knowledge may simply prefer a word after any `not`.
POLARITY = [
    (" ever", " probably", [("No {n} has", "The {n} has"), ("No {n} had", "The {n} had")]),
    (" yet", " already", [("The {n} has not come", "The {n} has come"), ("The {n} is not here", "The {n} is here")]),
    (" either", " too", [("The {n} did not come", "The {n} did come"), ("The {n} is not old", "The {n} is old")]),
    (" any", " some", [("The {n} did not have", "The {n} did have"), ("The {n} can not find", "The {n} can find")]),
    (" anyone", " someone", [("The {n} did not see", "The {n} did see"), ("The {n} can not hear", "The {n} can hear")]),
    (" anybody", " somebody", [("The {n} did not meet", "The {n} did meet"), ("No {n} saw", "The {n} saw")]),
    (" anything", " something", [("The {n} did not write", "The {n} did write"), ("No {n} said", "The {n} said")]),
    (" anywhere", " somewhere", [("The {n} did not go", "The {n} did go"), ("No {n} lives", "The {n} lives")]),
    (" anymore", " still", [("The {n} does not sing", "The {n} does sing"), ("No {n} comes", "The {n} comes")]),
    (" much", " plenty", [("The {n} does not have", "The {n} does have"), ("The {n} did not say", "The {n} did say")]),
    (" a single", " several", [("The {n} did not win", "The {n} did win"), ("No {n} wrote", "The {n} wrote")]),
    (" at all", " indeed", [("The {n} did not sleep", "The {n} did sleep"), ("The {n} is not ill", "The {n} is ill")]),
]  # fmt: skip


def negation() -> Iterator[Pair]:
    """Yields pairs: a negative polarity item is likelier in the scope of a negation, a positive one outside it."""
    for (cluster, (negative, positive, contexts)), n in product(enumerate(POLARITY), PEOPLE):
        words = (negative.strip(), positive.strip())
        for negated, plain in ((a.format(n=n), b.format(n=n)) for a, b in contexts):
            yield Pair(cluster, negated, plain, negative, words)
            yield Pair(cluster, plain, negated, positive, words)


VERB_FORMS = [
    ("go", "went"), ("come", "came"), ("write", "wrote"), ("win", "won"), ("sing", "sang"), ("fall", "fell"),
    ("die", "died"), ("leave", "left"), ("return", "returned"), ("speak", "spoke"), ("sleep", "slept"),
    ("arrive", "arrived"),
]  # fmt: skip
SUBJECTS = ["he", "she", "the king"]
ASKED = [("When did {s}", "They did when {s}"), ("Where did {s}", "They did where {s}")]


def inversion() -> Iterator[Pair]:
    """Yields pairs: after an inverted `did` the verb has no ending, otherwise it has; both texts use the same words.

    The question mark is not tested: it would be one target for all clusters, and a model's preference for it would be
    right or wrong in all of them at once.
    """
    for (cluster, (base, past)), subject, (asked, told) in product(enumerate(VERB_FORMS), SUBJECTS, ASKED):
        asked, told = asked.format(s=subject), told.format(s=subject)
        yield Pair(cluster, asked, told, " " + base, (base, past))
        yield Pair(cluster, told, asked, " " + past, (base, past))


BEFORE_PRONOUN = [
    "The {n} left the city because", "The {n} wrote many books before",
    "The {n} was ill when", "The {n} went home after",
]  # fmt: skip


def pronouns() -> Iterator[Pair]:
    """Yields pairs in which a pronoun has the gender of its possible antecedent."""
    for (cluster, words), text, gender in product(enumerate(GENDERS), BEFORE_PRONOUN, (0, 1)):
        good, bad = (text.format(n=words[k]) for k in (gender, 1 - gender))
        yield Pair(cluster, good, bad, (" he", " she")[gender], words)


def pairs() -> dict[str, list[Pair]]:
    """Returns at least 100 pairs of each kind, without repeats."""
    kinds = (agreement, negation, inversion, pronouns)
    return {kind.__name__: list(kind()) for kind in kinds}

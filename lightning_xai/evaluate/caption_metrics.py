"""The usual table of caption metrics, each against one or more references an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_xai.evaluate.bleu import bleu, bleu_counts, bleu_of
from lightning_xai.evaluate.cider import cider, cider_d, cider_scores
from lightning_xai.evaluate.graph_structure import CaptionParser, RuleParser, structure_difference
from lightning_xai.evaluate.java_metrics import meteor, meteor_program, spice, spice_program
from lightning_xai.evaluate.rouge_l import rouge_l

Sentences = Sequence[str]
References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a corpus by metric, and of each caption in the order of `names`."""

    corpus: dict[str, float]
    each: dict[str, list[float]]
    names: tuple[str, ...]


def _bleu(captions: Sentences, references: References) -> tuple[dict[str, float], dict[str, list[float]]]:
    each = [bleu_of(bleu_counts(caption, known)) for caption, known in zip(captions, references, strict=True)]
    titles = [f"BLEU-{n}" for n in range(1, 5)]
    corpus = dict(zip(titles, bleu(captions, references), strict=True))
    return corpus, {title: list(column) for title, column in zip(titles, zip(*each, strict=True), strict=True)}


def _mean(title: str, scores: list[float]) -> tuple[dict[str, float], dict[str, list[float]]]:
    return {title: sum(scores) / len(scores)}, {title: scores}


def _rouge_l(captions: Sentences, references: References) -> tuple[dict[str, float], dict[str, list[float]]]:
    return _mean("ROUGE-L", [rouge_l(*pair) for pair in zip(captions, references, strict=True)])


def _cider_d(captions: Sentences, references: References) -> tuple[dict[str, float], dict[str, list[float]]]:
    # what coco-caption calls CIDEr is CIDEr-D, and so do the tables of papers
    return _mean("CIDEr", cider_scores(captions, references, score=cider_d))


def _cider_plain(captions: Sentences, references: References) -> tuple[dict[str, float], dict[str, list[float]]]:
    return _mean("CIDEr (plain)", cider_scores(captions, references, score=cider))


def _meteor(captions: Sentences, references: References, jar=None) -> tuple[dict[str, float], dict[str, list[float]]]:
    corpus, each = meteor(captions, references, jar)
    return {"METEOR": corpus}, {"METEOR": each}


def _spice(captions: Sentences, references: References, jar=None) -> tuple[dict[str, float], dict[str, list[float]]]:
    corpus, each = spice(captions, references, jar)
    return {"SPICE": corpus}, {"SPICE": each}


def _graph_structure(
    captions: Sentences, references: References, parse: CaptionParser | None = None
) -> tuple[dict[str, float], dict[str, list[float]]]:
    parse = parse or RuleParser()
    each: dict[str, list[float]] = {}
    for caption, known in zip(captions, references, strict=True):
        spoken = parse(caption).counts()
        rows = [structure_difference(spoken, parse(reference).counts()) for reference in known]
        for title in rows[0]:
            each.setdefault(title, []).append(sum(row[title] for row in rows) / len(rows))
    return {title: sum(column) / len(column) for title, column in each.items()}, each


METRICS: dict[str, Callable] = {
    "bleu": _bleu,
    "rouge_l": _rouge_l,
    "cider": _cider_d,
    "cider_plain": _cider_plain,
    "meteor": _meteor,
    "spice": _spice,
    "graph_structure": _graph_structure,
}
WITHOUT_JAVA = ("bleu", "rouge_l", "cider")
PROGRAMS = {"meteor": meteor_program, "spice": spice_program}


def require_metrics(metrics: Sequence[str], jars: Mapping[str, str] | None = None, programs: bool = True) -> None:
    """Raise what `caption_scores` would: ValueError for an unknown metric or a jar of none that is a Java program.

    With programs also JavaMetricMissing for one whose program is not there, so that nobody hears of it after hours.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"no caption metric {unknown[0]!r}; there are: {', '.join(METRICS)}.")
    jars = jars or {}
    unknown = [metric for metric in jars if metric not in PROGRAMS]
    if unknown:
        raise ValueError(
            f"a jar of {unknown[0]!r} is given; the metrics that are Java programs: {', '.join(PROGRAMS)}."
        )
    for metric in metrics:
        if programs and metric in PROGRAMS:
            PROGRAMS[metric](jars.get(metric))


def caption_scores(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = WITHOUT_JAVA,
    jars: Mapping[str, str] | None = None,
    parse: CaptionParser | None = None,
) -> CaptionScores:
    """Score captions by image name against the references of that name, words being what stands between blanks.

    BLEU, ROUGE-L, METEOR and SPICE are in [0, 1], CIDEr in [0, 10]; papers print them times 100. "cider" is
    coco-caption's, that is CIDEr-D, and tells rare words by the references of the predicted images: of a single image
    it is 0. References without a prediction are left aside. "graph_structure" gives G, G_o, G_a and G_r, in which 0 is
    best, by how `parse` reads captions (default: `RuleParser`). jars: the Java program of "meteor" or "spice", see
    `java_metrics`.

    Raises ValueError for no prediction, one without references, or an unknown metric, and JavaMetricMissing.
    """
    require_metrics(metrics, jars)
    if not predictions:
        raise ValueError("there is no caption to score; predict at least one.")
    alone = [name for name in predictions if not references.get(name)]
    if alone:
        raise ValueError(f"{len(alone)} of {len(predictions)} captions have no reference (first: {alone[0]!r}).")
    names = tuple(predictions)
    captions, known = [predictions[name] for name in names], [list(references[name]) for name in names]
    corpus: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    for metric in metrics:
        options: dict[str, object] = {"jar": jars[metric]} if jars and metric in jars else {}
        if metric == "graph_structure":
            options["parse"] = parse
        of_corpus, of_each = METRICS[metric](captions, known, **options)
        corpus |= of_corpus
        each |= of_each
    return CaptionScores(corpus, each, names)


def vocabulary_size(captions: Sentences) -> int:
    """How many different words the captions use."""
    return len({word for caption in captions for word in caption.split()})


def mean_length(captions: Sentences) -> float:
    """Words of a caption on average."""
    return sum(len(caption.split()) for caption in captions) / len(captions)

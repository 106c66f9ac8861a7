"""The table of caption metrics."""

import pytest

from lightning_xai.evaluate.caption_metrics import (
    METRICS,
    caption_scores,
    mean_length,
    require_metrics,
    vocabulary_size,
)
from lightning_xai.evaluate.graph_structure import CaptionGraph
from lightning_xai.evaluate.java_metrics import JavaMetricMissing

REFERENCES = {"x": ["a dog runs in the park", "a dog"], "y": ["two cats sleep on a mat"], "unused": ["nothing"]}


def test_perfect_captions():
    scores = caption_scores({"x": "a dog runs in the park", "y": "two cats sleep on a mat"}, REFERENCES)
    assert list(scores.corpus) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert list(scores.corpus.values())[:5] == pytest.approx([1] * 5)
    assert scores.each["CIDEr"][1] == pytest.approx(10) and scores.names == ("x", "y")
    assert all(len(column) == 2 for column in scores.each.values())


def test_the_order_of_predictions_does_not_matter():
    said = {"x": "a cat runs in the park", "y": "two dogs sleep"}
    forward, backward = (caption_scores(dict(order), REFERENCES) for order in (said.items(), [*said.items()][::-1]))
    assert forward.corpus == pytest.approx(backward.corpus)
    for title, column in forward.each.items():
        assert column == backward.each[title][::-1]


def test_metrics_are_chosen_by_name():
    said = {"x": "a dog a dog", "y": "cats"}
    assert list(caption_scores(said, REFERENCES, ["rouge_l"]).corpus) == ["ROUGE-L"]
    plain = caption_scores(said, REFERENCES, ["cider", "cider_plain"]).corpus
    assert plain["CIDEr (plain)"] > plain["CIDEr"]
    with pytest.raises(ValueError, match="no caption metric 'blue'; there are: " + ", ".join(METRICS)):
        caption_scores(said, REFERENCES, ["blue"])
    with pytest.raises(JavaMetricMissing, match=r"none\.jar"):
        caption_scores(said, REFERENCES, ["meteor"], {"meteor": "none.jar"})


def test_what_is_missing_is_told_before_the_captions_are_written(tmp_path):
    require_metrics(["bleu", "meteor"], {"meteor": "none.jar"}, programs=False)
    with pytest.raises(JavaMetricMissing, match=r"METEOR: none\.jar does not exist"):
        require_metrics(["bleu", "meteor"], {"meteor": "none.jar"})
    (tmp_path / "spice.jar").touch()
    with pytest.raises(JavaMetricMissing, match=r"SPICE needs .*stanford-corenlp-3\.6\.0\.jar"):
        require_metrics(["spice"], {"spice": str(tmp_path / "spice.jar")})
    with pytest.raises(ValueError, match="a jar of 'metoer' is given; the metrics that are Java programs: meteor, spi"):
        require_metrics(["bleu"], {"metoer": "meteor-1.5.jar"}, programs=False)


def test_graph_structure_counts_what_captions_speak_of():
    said = {"x": "a red dog", "y": "a cat on a mat"}
    known = {"x": ["a big dog", "a dog on a big mat"], "y": ["a cat on a mat"]}
    scores = caption_scores(said, known, ["graph_structure"])
    # of x: nothing against the first reference, one object and one relation against the second
    assert scores.each == {"G": [pytest.approx(1 / 3), 0], "G_o": [0.5, 0], "G_a": [0, 0], "G_r": [0.5, 0]}
    assert scores.corpus == pytest.approx({"G": 1 / 6, "G_o": 0.25, "G_a": 0, "G_r": 0.25})

    def nothing(caption: str) -> CaptionGraph:
        return CaptionGraph((), (), ())

    assert caption_scores(said, known, ["graph_structure"], parse=nothing).corpus["G"] == 0


def test_captions_and_references_that_do_not_fit():
    with pytest.raises(ValueError, match=r"1 of 2 captions have no reference \(first: 'z'\)"):
        caption_scores({"x": "a", "z": "b"}, {**REFERENCES, "z": []})
    with pytest.raises(ValueError, match="no caption to score"):
        caption_scores({}, REFERENCES)


def test_an_empty_caption_scores_nothing():
    scores = caption_scores({"x": "", "y": "two cats sleep on a mat"}, REFERENCES)
    assert scores.each["ROUGE-L"][0] == 0 and scores.each["CIDEr"][0] == 0 and scores.each["BLEU-1"][0] < 1e-8


def test_one_image_tells_no_word_from_another():
    scores = caption_scores({"y": "two cats sleep on a mat"}, REFERENCES)
    assert scores.corpus["CIDEr"] == 0 and scores.corpus["BLEU-4"] == pytest.approx(1)


def test_words_used():
    assert vocabulary_size(["a dog", "a cat"]) == 3 and mean_length(["a dog", "a", "", "b c d"]) == 1.5

"""METEOR and SPICE: what is said to their programs and understood of their answers, with programs that we make up."""

import json
import math
import sys

import pytest

from lightning_xai.evaluate.java_metrics import JavaMetricMissing, meteor, spice

CAPTIONS, REFERENCES = ["a  dog ||| runs", "a cat"], [["the dog", "dogs run"], ["cats"]]


def program(folder, lines: str):
    """An executable that stands for Java; it finds what it was called with in `sys.argv`."""
    file = folder / "java"
    file.write_text(f"#!{sys.executable}\nimport json, sys\n{lines}\n")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def meteor_jar(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "paraphrase-en.gz").touch()
    (tmp_path / "meteor-1.5.jar").touch()
    return tmp_path / "meteor-1.5.jar"


@pytest.fixture
def spice_jar(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "spice-1.0.jar").touch()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "lib" / name).touch()
    return tmp_path / "spice-1.0.jar"


def test_meteor_is_asked_caption_by_caption(meteor_jar, tmp_path):
    java = program(
        tmp_path,
        f"""
heard = open({str(tmp_path / "heard")!r}, "w")
for line in sys.stdin:
    print(line.strip(), file=heard, flush=True)
    answers = ["1.0 2.0"] if line.startswith("SCORE") else ["0.25", "0.75", "0.6"]
    print(*answers, sep="\\n", flush=True)
""",
    )
    assert meteor(CAPTIONS, REFERENCES, meteor_jar, java) == (0.6, [0.25, 0.75])
    assert (tmp_path / "heard").read_text().splitlines() == [
        "SCORE ||| the dog ||| dogs run ||| a dog runs",
        "SCORE ||| cats ||| a cat",
        "EVAL ||| 1.0 2.0 ||| 1.0 2.0",
    ]


@pytest.mark.parametrize("lines", ["sys.exit('no memory')", "print('what?'); sys.exit('no memory')"])
def test_meteor_that_fails(meteor_jar, tmp_path, lines):
    with pytest.raises(RuntimeError, match=r"METEOR \(.*meteor-1\.5\.jar.*\) failed: .*no memory"):
        meteor(CAPTIONS * 2000, REFERENCES * 2000, meteor_jar, program(tmp_path, lines))


def test_spice_reads_scores_by_caption(spice_jar, tmp_path):
    java = program(
        tmp_path,
        """
given = json.load(open(sys.argv[4]))
assert [entry["refs"] for entry in given] == [["the dog", "dogs run"], ["cats"]]
scores = [{"image_id": e["image_id"], "scores": {"All": {"f": [0.5, 0.25][e["image_id"]]}}} for e in given]
json.dump(scores[::-1], open(sys.argv[sys.argv.index("-out") + 1], "w"))
""",
    )
    assert spice(CAPTIONS, REFERENCES, spice_jar, java) == (0.375, [0.5, 0.25])


def test_spice_of_a_caption_without_a_graph(spice_jar, tmp_path):
    answer = json.dumps([{"image_id": n, "scores": {"All": {"f": f}}} for n, f in enumerate(["NaN", 1.0])])
    java = program(tmp_path, f"open(sys.argv[sys.argv.index('-out') + 1], 'w').write({answer!r})")
    mean, each = spice(CAPTIONS, REFERENCES, spice_jar, java)
    assert math.isnan(mean) and math.isnan(each[0]) and each[1] == 1
    with pytest.raises(RuntimeError, match=r"SPICE \(.*\) failed: no models"):
        spice(CAPTIONS, REFERENCES, spice_jar, program(tmp_path, "sys.exit('no models')"))


@pytest.mark.parametrize("metric", [meteor, spice])
def test_programs_that_are_not_there(metric, tmp_path, monkeypatch):
    with pytest.raises(JavaMetricMissing, match=r"none\.jar does not exist; name the jar"):
        metric(CAPTIONS, REFERENCES, tmp_path / "none.jar")
    monkeypatch.setattr("lightning_xai.evaluate.java_metrics.find_spec", lambda name: None)
    with pytest.raises(JavaMetricMissing, match="is a Java program: name its jar, or pip install pycocoevalcap"):
        metric(CAPTIONS, REFERENCES)


def test_what_stands_beside_a_jar(meteor_jar, spice_jar):
    with pytest.raises(JavaMetricMissing, match="there is no 'no-java' on this machine"):
        meteor(CAPTIONS, REFERENCES, meteor_jar, java="no-java")
    (meteor_jar.parent / "data" / "paraphrase-en.gz").unlink()
    with pytest.raises(JavaMetricMissing, match=r"METEOR needs its paraphrases: .*paraphrase-en\.gz is missing"):
        meteor(CAPTIONS, REFERENCES, meteor_jar, java=sys.executable)
    (spice_jar.parent / "lib" / "stanford-corenlp-3.6.0-models.jar").unlink()
    with pytest.raises(JavaMetricMissing, match=r"SPICE needs .*3\.6\.0-models\.jar, which no package brings"):
        spice(CAPTIONS, REFERENCES, spice_jar, java=sys.executable)

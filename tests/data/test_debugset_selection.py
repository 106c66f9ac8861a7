import math

import numpy as np
import pytest

from lightning_xai.data.debugset_selection import (
    ClassifiedImages,
    entropies,
    mean_failure_features,
    plan_failures,
    plan_selection,
)

NAMES = ["cat", "dog"]


def logits_of(probabilities):
    return np.log(np.array(probabilities, dtype=np.float32))


@pytest.fixture
def pool():
    """Six images; of the cats (places 0, 2, 4, 5 in order) the features lie on a line at 0, 1, 2, 3."""
    return ClassifiedImages(
        paths=["p/cat/a.png", "p/dog/a.png", "p/cat/b.png", "p/dog/b.png", "p/cat/c.png", "p/cat/d.JPG"],
        labels=np.array([0, 1, 0, 1, 0, 0]),
        features=np.array([[0, 0], [9, 9], [1, 0], [8, 8], [2, 0], [3, 0]], dtype=np.float32),
        logits=logits_of([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.4, 0.6], [0.6, 0.4], [0.01, 0.99]]),
    )


@pytest.fixture
def discovery():
    """Cats at 10 (right), 2.4 and 2.0 (taken for dogs); dogs without a failure."""
    return ClassifiedImages(
        paths=["d/cat/right.png", "d/cat/far.png", "d/cat/near.png", "d/dog/x.png"],
        labels=np.array([0, 0, 0, 1]),
        features=np.array([[10, 0], [2.4, 0], [2.0, 0], [0, 0]], dtype=np.float32),
        logits=logits_of([[0.9, 0.1], [0.3, 0.7], [0.1, 0.9], [0.2, 0.8]]),
    )


def test_similarity_takes_the_nearest_to_the_mean_of_failures_only(pool, discovery):
    assert np.allclose(mean_failure_features(discovery, 0), [2.2, 0])
    cats = [e for e in plan_selection("S-Similarity", pool, NAMES, 2, discovery=discovery) if e.class_name == "cat"]
    assert [entry.source for entry in cats] == ["p/cat/c.png", "p/cat/d.JPG"]
    assert [entry.score for entry in cats] == pytest.approx([0.04, 0.64])
    assert [entry.path for entry in cats] == ["cat/s-similarity_00000.png", "cat/s-similarity_00001.jpg"]


def test_without_a_failure_similarity_is_random_and_says_so(pool, discovery):
    similar = [e for e in plan_selection("S-Similarity", pool, NAMES, 1, 3, discovery) if e.class_name == "dog"]
    chance = [e for e in plan_selection("S-Random", pool, NAMES, 1, 3) if e.class_name == "dog"]
    assert [entry.source for entry in similar] == [entry.source for entry in chance]
    assert "no failure" in similar[0].note and similar[0].seed == 3 and similar[0].score is None


def test_active_learning_takes_the_most_uncertain(pool):
    entries = plan_selection("S-Active-Learning", pool, NAMES, 2)
    assert [entry.source for entry in entries] == ["p/cat/b.png", "p/cat/c.png", "p/dog/b.png", "p/dog/a.png"]
    assert entries[0].score == pytest.approx(math.log(2))
    assert entries[1].score == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4), rel=1e-6)


def test_ties_keep_the_pool_s_order():
    pool = ClassifiedImages(
        [f"{i}.png" for i in range(5)], np.zeros(5, np.int64), np.ones((5, 2), np.float32), np.ones((5, 2), np.float32)
    )
    wrong = ClassifiedImages(["x"], np.array([0]), np.zeros((1, 2), np.float32), np.array([[0.0, 1.0]]))
    for strategy in ("S-Similarity", "S-Active-Learning"):
        entries = plan_selection(strategy, pool, NAMES, 3, discovery=wrong)
        assert [entry.source for entry in entries] == ["0.png", "1.png", "2.png"]


def test_entropy_of_extreme_logits_is_finite():
    assert entropies(np.array([[1000.0, -1000.0], [0.0, 0.0]])) == pytest.approx([0, math.log(2)])


def test_random_does_not_depend_on_the_pool_s_order_but_on_the_seed():
    paths, labels = [f"p/{i:03d}.png" for i in range(60)], np.arange(60) % 2
    shuffled = np.random.default_rng(1).permutation(60)

    def drawn(order, seed):
        pool = ClassifiedImages([paths[i] for i in order], labels[order])
        return [entry.source for entry in plan_selection("S-Random", pool, NAMES, 10, seed)]

    first = drawn(np.arange(60), 0)
    assert drawn(shuffled, 0) == first and drawn(shuffled, 1) != first
    assert len(set(first)) == 20 and all(int(path[2:5]) % 2 == place // 10 for place, path in enumerate(first))


def test_fewer_candidates_than_wanted_are_all_taken(pool, discovery):
    for strategy in ("S-Random", "S-Similarity", "S-Active-Learning"):
        entries = plan_selection(strategy, pool, NAMES, 100, discovery=discovery)
        assert len(entries) == 6 and [entry.rank for entry in entries] == [0, 1, 2, 3, 0, 1]


def test_failures_are_gathered_by_confidence_under_their_own_names(discovery):
    failures = plan_failures(discovery, NAMES)
    assert [entry.path for entry in failures] == ["cat/near.png", "cat/far.png"]
    assert [entry.score for entry in failures] == pytest.approx([0.9, 0.7])
    assert failures[0].note == "predicted dog"
    logits = np.array([[0.0, 1], [0, 2], [3, 0]], np.float32)
    places = ClassifiedImages(["p/cat/1.jpg", "p/cat/2.jpg", "p/dog/1.png"], np.array([0, 0, 1]), logits=logits)
    assert [entry.path for entry in plan_failures(places, NAMES)] == ["cat/2.jpg", "cat/cat_1.jpg", "dog/dog_1.png"]


def test_what_is_missing_or_broken_is_named(pool, discovery):
    with pytest.raises(ValueError, match="S-Similarity needs a discovery set"):
        plan_selection("S-Similarity", pool, NAMES, 1)
    bare = ClassifiedImages(pool.paths, pool.labels)
    with pytest.raises(ValueError, match="needs features and logits of the pool"):
        plan_selection("S-Active-Learning", bare, NAMES, 1)
    with pytest.raises(ValueError, match="'S-Best' should be one of S-Random"):
        plan_selection("S-Best", pool, NAMES, 1)
    with pytest.raises(ValueError, match="labels reach 1, but there are 1 class names"):
        plan_selection("S-Random", pool, NAMES[:1], 1)
    with pytest.raises(ValueError, match="1 of 6 images have features that are not finite"):
        ClassifiedImages(pool.paths, pool.labels, np.where(pool.features == 9, np.nan, pool.features))
    with pytest.raises(ValueError, match="6 features for 5 images"):
        ClassifiedImages(pool.paths[:5], pool.labels[:5], pool.features)

import pytest

from lightning_xai.data.concept_listers import ConceptLister
from lightning_xai.data.concepts import ClassConcepts
from lightning_xai.data.debugset_prompts import MissingProvider, apportion, image_seed, plan_prompts
from lightning_xai.data.token_learners import ClassNameToken, TokenLearner

NAMES = ["living_room", "office"]


class Lister(ConceptLister):
    provider = "test"

    def list(self, class_name, n):
        return [f"{class_name} thing {i}" for i in range(4)][:n]


class Learner(TokenLearner):
    provider = "test"

    def learn(self, class_name, images, init_word):
        return f"<{class_name}:{init_word}:{len(images)}>"


@pytest.mark.parametrize(
    "weights, total, parts",
    [
        ([1, 1, 1], 10, [4, 3, 3]),
        ([2, 1], 10, [7, 3]),
        ([5, 3, 2], 7, [4, 2, 1]),  # 3.5, 2.1, 1.4
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),
        ([0.1, 0.7, 0.2], 1000, [100, 700, 200]),
    ],
)
def test_largest_remainder(weights, total, parts):
    assert apportion(weights, total) == parts


def test_image_seeds_are_the_same_everywhere():
    """Known answer: the first four bytes of SHA-256 of '0/star/7', big-endian."""
    assert image_seed(0, "star", 7) == 0x9605F413
    seeds = {image_seed(seed, name, i) for seed in range(3) for name in NAMES for i in range(100)}
    assert len(seeds) == 600


def test_class_names_become_words():
    entries = plan_prompts("G-LLM", NAMES, 2, provider="p")
    assert [entry.prompt for entry in entries] == ["a photo of a living room"] * 2 + ["a photo of a office"] * 2
    assert [entry.path for entry in entries][1:3] == ["living_room/g-llm_00001.png", "office/g-llm_00000.png"]
    assert len({entry.seed for entry in entries}) == 4 and {entry.provider for entry in entries} == {"p"}
    assert plan_prompts("G-LLM", NAMES, 2, seed=1)[0].seed != entries[0].seed


def test_learned_words_take_the_name_s_place():
    entries = plan_prompts("G-TG", NAMES, 1, learner=Learner(), training_images={"office": ["a.png", "b.png"]})
    assert [entry.prompt for entry in entries] == [
        "a photo of a <living_room:living room:0>",
        "a photo of a <office:office:2>",
    ]
    same = plan_prompts("G-TG", NAMES, 1, learner=ClassNameToken())
    assert [entry.prompt for entry in same] == [entry.prompt for entry in plan_prompts("G-LLM", NAMES, 1)]


def test_listed_concepts_share_the_images_evenly():
    entries = plan_prompts("G-LLM-prompt", ["office"], 10, lister=Lister(), concepts_per_class=3)
    assert [entry.concept for entry in entries] == ["office thing 0"] * 4 + ["office thing 1"] * 3 + [
        "office thing 2"
    ] * 3
    assert entries[0].prompt == "a office with a office thing 0" and entries[0].negative_prompt is None
    assert len({entry.seed for entry in entries}) == 10


def test_human_concepts_weigh_the_images_and_confounded_ones_are_negative():
    concepts = {"office": ClassConcepts({"desk": 3.0, "lamp": 1.0}, {"window": 2.0, "plant": 1.0})}
    given = {"learner": ClassNameToken(), "concepts": concepts}
    entries = plan_prompts("G-TG-human-prompt", NAMES, 4, **given)
    rooms, offices = entries[:4], entries[4:]
    assert [entry.prompt for entry in offices] == ["a office with a desk"] * 3 + ["a office with a lamp"]
    assert {entry.negative_prompt for entry in offices} == {"window, plant"}
    assert {entry.prompt for entry in rooms} == {"a photo of a living room"}
    assert all("no valid concept" in entry.note for entry in rooms)
    omitted = plan_prompts("G-TG-human-prompt", NAMES, 4, confounded="omit", **given)
    assert {entry.negative_prompt for entry in omitted} == {None}


def test_own_templates_take_turns():
    entries = plan_prompts("G-LLM", ["office"], 3, templates=["an {subject} {now}", "the {subject}"])
    assert [entry.prompt for entry in entries] == ["an office {now}", "the office", "an office {now}"]


@pytest.mark.parametrize(
    "strategy, given, message",
    [
        ("G-LLM-prompt", {}, "needs a concept lister: give `--lister ConceptFile"),
        ("G-TG", {}, "needs a token learner: give `--learner EmbeddingFolder"),
        ("G-TG-human-prompt", {"learner": ClassNameToken()}, "needs human concepts: give `--concepts FILE`"),
        ("G-LLM", {"templates": ["a photo"]}, r"template 'a photo' of G-LLM should contain \{subject\}"),
        ("G-LLM", {"confounded": "maybe"}, "should be negative or omit"),
        ("S-Random", {}, "should be one of G-LLM"),
    ],
)
def test_what_is_missing_is_named(strategy, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan_prompts(strategy, NAMES, 1, **given)
    assert isinstance(caught.value, MissingProvider) == ("needs" in message)

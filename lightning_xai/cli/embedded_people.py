"""Crowd tasks about a classifier's failures on the embedded world, answered by the people of that world."""

import json
from pathlib import Path

import numpy as np

from lightning_xai.cli.classifier_runs import TrainedClassifier
from lightning_xai.data.concepts import ClassConcepts, class_concepts, write_concepts
from lightning_xai.data.crowd_tasks import read_answers, read_crowd_tasks
from lightning_xai.data.embedded_annotator import attribution_answers, rationale_answers
from lightning_xai.data.embedded_classification import DESCRIPTION, read_truth

PICTURES_A_CLASS = 20  # that people look at


def require_embedded_world(root: Path) -> None:
    """Raise FileNotFoundError where `root` is no drawn embedded world, whose truth the answers are taken from."""
    if not (root / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"{root / DESCRIPTION}: no such file; only the embedded world has people who answer: give `concepts`, a "
            "file that `lightning-xai debugset concepts` writes from crowd tasks"
        )


def embedded_concepts(
    classifier: TrainedClassifier, discovery: str, method: dict[str, dict | None], folder: Path
) -> dict[str, ClassConcepts]:
    """Valid and confounded concepts of each class, from what people see in the explanations of failures.

    Writes model_tasks.json, human_tasks.json and concepts.json into `folder`.
    """
    root = classifier.data.root
    require_embedded_world(root)
    world, truth = json.loads((root / DESCRIPTION).read_text()), read_truth(root)
    images = classifier.images(discovery, masks=True)
    judged = classifier.judged(discovery)
    wrong = set(np.array(judged.paths)[judged.logits.argmax(1) != judged.labels].tolist())
    places: list[int] = []
    for label in range(len(classifier.class_names)):
        own = [i for i in np.flatnonzero(images.labels == label).tolist() if str(images.path(i)) in wrong]
        places += own[:PICTURES_A_CLASS]
    model, human, class_of = [], [], {}
    if places:
        relevance, _ = classifier.maps(images, places, method)
        for place, values in zip(places, relevance, strict=True):
            path = images.path(place)
            true = truth[path.relative_to(root).as_posix()]
            mask = images[place][1]["object_mask"].numpy() == 1
            class_of[path.stem] = true["class"]
            seen = (path.stem, true["class"], world["recipe"]["cue"], values, mask, true["mark"])
            model += attribution_answers(*seen)
            human += rationale_answers(path.stem, true["class"])
    folder.mkdir(parents=True, exist_ok=True)
    answers = []
    for name, tasks in (("model_tasks.json", model), ("human_tasks.json", human)):
        (folder / name).write_text(json.dumps(tasks, indent=1) + "\n", encoding="utf-8")
        answers.append(read_answers(read_crowd_tasks(folder / name)).answers)
    concepts = class_concepts(*answers, class_of)
    write_concepts(folder / "concepts.json", concepts)
    return concepts

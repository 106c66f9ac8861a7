"""Debug sets picked from a pool, and difficulty told from ratings of explanations."""

import numpy as np
import torch

from checks import check
from lightning_xai.data.debugset_selection import (
    ClassifiedImages,
    entropies,
    mean_failure_features,
    misclassified,
    pick_similar,
    pick_uncertain,
    squared_distances,
)
from lightning_xai.data.difficulty import image_difficulties


def tolerate_each_value(case):
    """The tolerance that the case states, relative to each value itself."""
    stated = case.info["tolerance"]
    rule = {"atol": stated["abs"], "rtol": stated["rel"]}
    stated["per_output"] = dict.fromkeys(case.outputs, rule)


def images(case, prefix: str) -> ClassifiedImages:
    """The case's images of one role; their paths only count them."""
    labels, features, logits = (case.inputs[f"{prefix}_{name}"].numpy() for name in ("labels", "features", "logits"))
    return ClassifiedImages([f"{index:09d}" for index in range(len(labels))], labels, features, logits)


@check("sa3/egdd_selection")
def egdd_selection(case):
    tolerate_each_value(case)
    pool, discovery = images(case, "pool"), images(case, "error")
    count, classes = case.config["k"], range(case.config["classes"])
    means = np.stack([mean_failure_features(discovery, label) for label in classes])
    distances = np.empty(len(pool.labels))
    for label in classes:
        members = pool.labels == label
        distances[members] = squared_distances(pool.features[members], means[label])
    similar = np.stack([pick_similar(pool, discovery, label, count, 0).indices for label in classes])
    uncertain = np.stack([pick_uncertain(pool, None, label, count, 0).indices for label in classes])
    case.compare("misclassified", torch.from_numpy(misclassified(discovery.logits, discovery.labels)))
    case.compare("mean_error_embedding", torch.from_numpy(means))
    case.compare("squared_distance", torch.from_numpy(distances))
    case.compare("entropy", torch.from_numpy(entropies(pool.logits)))
    case.compare("similarity_indices", torch.from_numpy(similar))
    case.compare("active_indices", torch.from_numpy(uncertain))


@check("sa3/egdd_difficulty")
def egdd_difficulty(case):
    tolerate_each_value(case)
    tasks = case.info["tasks"]
    if len(tasks) != int(case.inputs["n_tasks"]):
        case.failures.append(f"{len(tasks)} tasks instead of {int(case.inputs['n_tasks'])}")
    scores = image_difficulties(tasks)
    case.compare("image_id", torch.tensor([int(image) for image in scores]))
    case.compare("difficulty", torch.tensor(list(scores.values()), dtype=torch.float64))

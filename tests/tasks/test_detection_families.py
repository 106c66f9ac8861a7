import pytest
import torch

from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.nets.detr import DETR
from lightning_xai.tasks.detection import DetectionTask
from lightning_xai.tasks.detection_families import FAMILIES, family_of
from lightning_xai.tasks.detection_losses import SetCriterion
from lightning_xai.tasks.detr_losses import SoftmaxMatcher, SoftmaxSetCriterion


def test_the_network_or_the_argument_decides(make_net):
    assert family_of(make_net()) is FAMILIES["sigmoid"]
    assert family_of(make_net(), "softmax") is FAMILIES["softmax"]
    assert DETR.class_scores == "softmax" and DeformableDETR.class_scores == "sigmoid"
    with pytest.raises(ValueError, match="class_scores='logistic' is unknown: it must be 'sigmoid' or 'softmax'"):
        family_of(make_net(), "logistic")


def test_each_family_has_its_published_costs_and_weights(make_net):
    softmax = DetectionTask(make_net(), class_scores="softmax").criterion
    assert isinstance(softmax, SoftmaxSetCriterion) and isinstance(softmax.matcher, SoftmaxMatcher)
    assert (softmax.matcher.cost_class, softmax.weight_of["loss_ce"], softmax.no_object_weight) == (1, 1, 0.1)
    sigmoid = DetectionTask(make_net()).criterion
    assert type(sigmoid) is SetCriterion
    assert (sigmoid.matcher.cost_class, sigmoid.weight_of["loss_ce"], sigmoid.focal_alpha) == (2, 2, 0.25)
    given = DetectionTask(make_net(), class_scores="softmax", cost_class=3, loss_giou=4, no_object_weight=0.2).criterion
    assert (given.matcher.cost_class, given.weight_of["loss_giou"], given.no_object_weight) == (3, 4, 0.2)


def test_an_option_of_the_other_family_is_refused(make_net):
    with pytest.raises(ValueError, match=r"focal_alpha=0.3 belongs to the other family.*no_object_weight is the one"):
        DetectionTask(make_net(), class_scores="softmax", focal_alpha=0.3)
    with pytest.raises(ValueError, match=r"no_object_weight=0.1 belongs to the other family.*focal_alpha is the one"):
        DetectionTask(make_net(), no_object_weight=0.1)


def test_scores_are_probabilities_of_the_classes(make_net):
    logits = torch.randn(2, 6, 5)
    task = DetectionTask(make_net(), class_scores="softmax")
    scores = task.class_probabilities({"pred_logits": logits})
    assert scores.shape == (2, 6, 4)
    torch.testing.assert_close(scores.sum(-1) + logits.softmax(-1)[..., 4], torch.ones(2, 6))
    assert FAMILIES["sigmoid"].scores(logits).shape == (2, 6, 5)


def test_softmax_reports_each_query_once(make_net, make_batch):
    task = DetectionTask(make_net(), class_scores="softmax")
    (image, _) = task.predict_step(make_batch([1, 2]), 0)
    assert image["queries"].tolist() == list(range(6))
    assert image["labels"].max() < 3  # the last of the four logits means no object

"""The views during validation: the same objects every time, and no trace in the training."""

import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_xai.callbacks.deformable_views import DeformableAttentionViews, best_query
from lightning_xai.explain.intervention import Intervention

pytestmark = pytest.mark.filterwarnings("ignore")


def pictures(folder):
    return sorted(str(file.relative_to(folder / "pictures")) for file in folder.glob("pictures/**/*.png"))


def fit(trainer, task, batches, **options):
    made = trainer(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(task, batches(), batches())
    return made


def test_same_samples_and_objects_every_epoch(trainer, task, validation_batches, tmp_path):
    callback = DeformableAttentionViews(samples=2, detections=1, views=["detections", "queries", "points"])
    fit(trainer, task(), validation_batches, max_epochs=2, callbacks=[callback])
    expected = [
        f"attention/image_{image}/{name}/step_{step:08d}.png"
        for image in (10, 20)  # the two smallest ids, though they come in different batches
        for name in ("detections", "object_0/decoder_points", "queries")
        for step in (2, 4)
    ]
    assert pictures(tmp_path) == sorted(expected)
    watched = callback.watched[20]
    assert watched.objects.tolist() == [[10, 8, 50, 44]]  # the largest
    assert watched.labels.tolist() == [2]


def test_every_n_epochs_and_sanity_check(trainer, task, validation_batches, tmp_path):
    callback = DeformableAttentionViews(samples=1, detections=1, views=["heat"], every_n_epochs=2)
    fit(trainer, task(), validation_batches, max_epochs=3, callbacks=[callback], num_sanity_val_steps=1)
    # Two steps an epoch: the second epoch, and the third because it is the last; nothing of the sanity check.
    heat = "attention/image_10/object_0/decoder_heat"
    assert pictures(tmp_path) == [f"{heat}/step_00000004.png", f"{heat}/step_00000006.png"]


def test_all_views_of_both_parts_under_validate(trainer, task, validation_batches, tmp_path):
    from lightning_xai.callbacks.deformable_views import VIEWS

    callbacks = [
        DeformableAttentionViews(samples=1, detections=1, part=part, views=VIEWS, levels=[1, 2], heads=[0])
        for part in ("decoder", "encoder")
    ]
    trainer(callbacks=callbacks).validate(task(with_box_refine=True), validation_batches(), verbose=False)
    found = {name.split("/")[-2] for name in pictures(tmp_path)}
    views = {f"{p}_{v}" for p in ("decoder", "encoder") for v in ("module", "layers", "grid", "points", "heat")}
    assert found == {"detections", "queries", *views}


def test_training_is_the_same_with_and_without(trainer, task, validation_batches):
    """With dropout: the same weights bit for bit, so no random number and no mode was changed."""
    ends = []
    for callbacks in ([], [DeformableAttentionViews(samples=1, detections=1, views=["detections", "queries", "heat"])]):
        pl.seed_everything(1, verbose=False)
        made = task()
        made.train()
        fit(trainer, made, validation_batches, max_epochs=2, callbacks=callbacks)
        ends.append([parameter.detach().clone() for parameter in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Watcher(DeformableAttentionViews):
    """Compares everything that must not change around the drawing."""

    def on_validation_end(self, trainer, pl_module):
        def traces():
            modules = list(pl_module.modules())
            return {
                "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
                "training": [m.training for m in modules],
                "gradients": [p.grad is None or p.grad.sum().item() for p in pl_module.parameters()],
                "needs": [p.requires_grad for p in pl_module.parameters()],
                "flags": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
                "modes": torch._C._len_torch_function_stack(),
                "torch": torch.get_rng_state().tolist(),
                "numpy": np.random.get_state()[1].tolist(),
                "python": random.getstate(),
            }

        pl_module.net.transformer.decoder.train()  # a part that somebody left in another mode stays so
        before = traces()
        super().on_validation_end(trainer, pl_module)
        assert traces() == before
        self.compared = True


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_nothing_is_left_behind(trainer, task, validation_batches, precision, tmp_path):
    callback = Watcher(samples=1, detections=1, views=["detections", "queries", "layers", "grid", "heat"])
    fit(trainer, task(), validation_batches, callbacks=[callback], precision=precision)
    assert callback.compared
    assert len(pictures(tmp_path)) == 5


def test_compiled_network(trainer, task, validation_batches, tmp_path):
    made = task()
    made.net.transformer.decoder.compile(backend="eager")
    callback = DeformableAttentionViews(samples=1, detections=1, views=["heat"])
    trainer(callbacks=[callback]).validate(made, validation_batches(), verbose=False)
    assert len(pictures(tmp_path)) == 1


def test_image_without_annotations_keeps_its_first_detections(trainer, task, validation_batches):
    given = validation_batches()
    for batch in given:
        for target in batch["targets"]:
            target["boxes"], target["labels"] = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    callback = DeformableAttentionViews(samples=1, detections=2, views=["points"])
    made = task()
    trainer(callbacks=[callback]).validate(made, given, verbose=False)
    first = callback.watched[10].objects.clone()
    assert first.shape == (2, 4)
    torch.nn.init.normal_(made.net.bbox_embed[0].layers[-1].weight)
    trainer(callbacks=[callback]).validate(made, given, verbose=False)
    assert torch.equal(callback.watched[10].objects, first)


def test_views_show_the_weights_under_the_tasks_intervention(trainer, task, validation_batches, monkeypatch):
    """Muted heads have no weight in the views either."""
    from lightning_xai.callbacks import attention_views, deformable_views

    seen = []

    class Seen(attention_views.RecordedImage):
        def __init__(self, picture, recording, *rest):
            seen.append(recording.at("decoder", 1).attention_weights)
            super().__init__(picture, recording, *rest)

    monkeypatch.setattr(deformable_views, "RecordedImage", Seen)
    made = task()
    plain = made.forward

    def forward(images, mask):
        with Intervention("decoder", heads=[0]).applied(made.net):
            return plain(images, mask)

    made.forward = forward
    callback = DeformableAttentionViews(samples=1, detections=1, views=["points"])
    trainer(callbacks=[callback]).validate(made, validation_batches(), verbose=False)
    assert seen[0][:, :, 0].abs().max() == 0
    assert seen[0][:, :, 1].min() > 0


def test_without_predictions_of_every_layer_one_warning(trainer, task, validation_batches, tmp_path):
    callback = DeformableAttentionViews(samples=2, detections=1, views=["queries", "points"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callbacks=[callback], max_epochs=2).fit(
            task(aux_loss=False), validation_batches(), validation_batches()
        )
    assert len([w for w in caught if 'view "queries" is left out' in str(w.message)]) == 1
    assert {name.split("/")[2] for name in pictures(tmp_path)} == {"object_0"}


@pytest.mark.parametrize("options", [{"layers": [2]}, {"heads": [5]}, {"levels": [3]}, {"part": "neck"}])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_selection_that_does_not_exist_is_told_at_the_start(trainer, task, validation_batches, options, stage):
    callback, batches = DeformableAttentionViews(**options), validation_batches()
    made = trainer(callbacks=[callback], num_sanity_val_steps=0)
    with pytest.raises(ValueError, match=r"does not exist; the decoder has|no part 'neck'; choose from"):
        made.fit(task(), batches, batches) if stage == "fit" else made.validate(task(), batches)
    assert made.global_step == 0
    assert callback.watched == {}


def test_other_processes_draw_nothing(task, validation_batches):
    callback = DeformableAttentionViews()
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=False)
    callback.on_validation_batch_end(trainer, None, None, next(iter(validation_batches())), 0)
    callback.on_validation_end(trainer, None)
    assert callback.watched == {}


def test_best_query_prefers_the_sure_one_among_those_that_overlap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [50, 50, 60, 60]])
    assert best_query(boxes, torch.tensor([0.1, 0.9, 0.99]), torch.tensor([0.0, 0, 10, 10])) == 1
    assert best_query(boxes, torch.tensor([0.1, 0.9, 0.99]), torch.tensor([90.0, 90, 95, 95])) == 2


def test_errors():
    with pytest.raises(ValueError, match="no view 'attention'; choose from detections, queries, module"):
        DeformableAttentionViews(views=["attention"])
    with pytest.raises(ValueError, match="samples=0, detections=2, every_n_epochs=1: each is at least 1"):
        DeformableAttentionViews(samples=0)

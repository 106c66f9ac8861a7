"""Pre-training of a masked autoencoder: the loss against loops over patches, the recipe, and what is shown of it."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_xai.nets.mae import MaskedAutoencoder, patchify, unpatchify
from lightning_xai.tasks.mae_pretraining import (
    MAEPretraining,
    image_losses,
    masked_pixel_loss,
    pasted_images,
    patch_noise,
    pixel_targets,
)

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL |= {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}


def small_task(seed=0, **options) -> MAEPretraining:
    torch.manual_seed(seed)
    return MAEPretraining(MaskedAutoencoder(**SMALL), **options)


def batch_of(indices, size=16):
    """Random bytes that follow from the images' indices."""
    generators = [torch.Generator().manual_seed(index) for index in indices]
    pictures = [torch.randint(0, 256, (3, size, size), generator=g, dtype=torch.uint8) for g in generators]
    return {"images": torch.stack(pictures), "index": torch.tensor(indices)}


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return batch_of([index])


def pictures(batch_size):
    def collate(samples):
        return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}

    return DataLoader(Pictures(), batch_size, collate_fn=collate)


def make_trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **{"max_epochs": 2, **quiet, **options})


def test_loss_is_the_mean_over_hidden_patches():
    generator = torch.Generator().manual_seed(0)
    pred, targets = (torch.randn(2, 4, 12, generator=generator) for _ in range(2))
    mask = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]])
    hidden = [(0, 0), (0, 3), (1, 2)]
    errors = [sum((pred[i, j, k] - targets[i, j, k]) ** 2 for k in range(12)) / 12 for i, j in hidden]
    assert masked_pixel_loss(pred, targets, mask).item() == pytest.approx(float(sum(errors) / 3), rel=1e-6)
    expected = [float(errors[0] + errors[1]) / 2, float(errors[2])]
    assert image_losses(pred, targets, mask).tolist() == pytest.approx(expected, rel=1e-6)


def test_normalised_targets():
    images = 3 + 2 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pixel_targets(images, 4, normalise=False), patchify(images, 4))
    targets = pixel_targets(images, 4, normalise=True)
    assert targets.mean(-1).abs().max() < 1e-6
    torch.testing.assert_close(targets.square().sum(-1) / 47, torch.ones(2, 4))  # n - 1 of 48 numbers
    flat = pixel_targets(torch.full((1, 3, 4, 4), 7.0), 4, normalise=True)
    assert not flat.any()  # no division by 0


def test_pasting_keeps_what_was_visible():
    images, painted = torch.ones(1, 3, 4, 6), torch.full((1, 3, 4, 6), 9.0)
    visible, pasted = pasted_images(images, painted, torch.tensor([[0.0, 1, 0, 1, 0, 0]]), 2, (2, 3))
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[:2, 2:4], hidden[2:, :2] = True, True
    assert torch.equal(visible[0, 0], (~hidden).float())
    assert torch.equal(pasted[0, 2], torch.where(hidden, 9.0, 1.0))


def test_noise_follows_from_the_index_alone():
    noise = patch_noise(torch.tensor([5, 6]), 40)
    assert torch.equal(noise[1], patch_noise(torch.tensor([3, 4, 6]), 40)[2])
    assert not torch.equal(noise[0], noise[1])
    assert noise.min() >= 0 and noise.max() < 1


def test_decay_spares_vectors_and_biases_only():
    task = small_task(weight_decay=0.05)
    task._trainer = make_trainer()
    optimizer = task.configure_optimizers()
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in task.net.named_parameters() if id(parameter) in decayed}
    assert {"cls_token", "mask_token", "patch_embed.proj.weight", "decoder_pred.weight"} <= names
    assert not [name for name in names if "norm" in name or name.endswith(("bias", "pos_embed"))]


def test_a_network_learns_to_paint():
    """Grey pictures of many brightnesses: the hidden patches follow from the visible ones."""
    grey = torch.linspace(20, 235, 64).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    batches = DataLoader([{"images": grey, "index": torch.arange(64)}] * 20, batch_size=None)
    task = small_task(lr=0.01, warmup_epochs=0.5)
    trainer = make_trainer(max_epochs=4)
    trainer.validate(task, batches, verbose=False)
    before = task.last_scores["loss"]
    trainer.fit(task, batches, batches)
    assert task.last_scores["loss"] < 0.1 * before
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(task.last_scores["loss"], rel=1e-6)


def test_validation_is_the_same_in_any_batches_and_at_any_time():
    task = small_task(norm_pix_loss=True)
    found = []
    for size in (7, 3, 1):
        torch.rand(size)
        make_trainer().validate(task, pictures(size), verbose=False)
        found.append(task.last_scores["loss"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)
    images = task.prepare(batch_of([2]))[0]
    outputs = task(images, patch_noise(torch.tensor([2]), 16))
    own = masked_pixel_loss(outputs["pred"], pixel_targets(images, 4, True), outputs["mask"])
    assert task.reconstruction(batch_of([0, 2])).losses[1].item() == pytest.approx(own.item(), rel=1e-5)


def test_a_picture_that_stands_in_for_an_unreadable_one_counts_once():
    task, scores = small_task(), []
    for groups in ([[0, 1, 2]], [[0, 1], [1, 2]]):
        batches = DataLoader([batch_of(group) for group in groups], batch_size=None)
        make_trainer().validate(task, batches, verbose=False)
        scores.append(task.last_scores["loss"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_perfect_network_paints_the_original(normalised):
    task, batch = small_task(norm_pix_loss=normalised), batch_of([3, 8])
    perfect = pixel_targets(task.prepare(batch)[0], 4, normalised)
    task.net.register_forward_hook(lambda module, given, outputs: {**outputs, "pred": perfect})
    made = task.reconstruction(batch)
    assert (made.painted.int() - batch["images"].int()).abs().max() <= 1
    assert (made.pasted.int() - batch["images"].int()).abs().max() <= 1
    assert made.losses.abs().max() < 1e-6 and made.hidden == 0.75 and made.scaled == normalised
    hidden = unpatchify(
        task(*task.prepare(batch), patch_noise(batch["index"], 16))["mask"][..., None].expand(-1, -1, 48), 4, (4, 4)
    )
    mean = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]  # ImageNet's
    expected = torch.where(hidden > 0, mean, batch["images"])
    assert torch.equal(made.visible, expected)


def test_what_is_shown_is_within_bytes():
    task = small_task()
    task.net.register_forward_hook(lambda module, given, outputs: {**outputs, "pred": 100 * outputs["pred"].sign()})
    assert set(task.reconstruction(batch_of([1])).painted.unique().tolist()) == {0, 255}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_ratio": 0.97}, "mask_ratio=0.97 keeps 0 of 16 patches"),
        ({"encoder_only": True}, "encoder_only=True needs a checkpoint"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth"),
        ({"blr": -1.0}, "blr=-1.0"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small_task(**options)


def test_weights_to_start_from(tmp_path):
    trained = MaskedAutoencoder(**SMALL)
    torch.save({"model": trained.state_dict()}, tmp_path / "mae.pth")
    task = small_task(checkpoint=str(tmp_path / "mae.pth"))
    assert all(torch.equal(a, b) for a, b in zip(task.net.parameters(), trained.parameters(), strict=True))

"""The linear probe: what it trains, what it leaves alone, and that two processes evaluate what a checkpoint holds."""

import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_xai.explain.explanation import explain
from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.targets import class_targets
from lightning_xai.nets.mae import MaskedAutoencoder
from lightning_xai.nets.vit import build_vit
from lightning_xai.tasks.linear_probe import LinearProbe, put_probe
from lightning_xai.tasks.mae_pretraining import MAEPretraining

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
CLASSES = 3


def small_probe(seed=0, drop_path=0.3, **options) -> LinearProbe:
    torch.manual_seed(seed)
    arguments = SMALL | {"num_classes": CLASSES, "global_pool": "token", "drop_path_rate": drop_path}
    return LinearProbe(build_vit("timm:vit_tiny_patch16_224", arguments), **{"warmup_epochs": 0, **options})


def batch_of(indices):
    """Pictures in one of three colours, with noise, that follow from their indices."""
    pictures = []
    for index in indices:
        noise = torch.randint(0, 60, (3, 16, 16), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        noise[index % CLASSES] += 150
        pictures.append(noise)
    index = torch.tensor(indices)
    return {"images": torch.stack(pictures), "labels": index % CLASSES, "index": index}


def batches(*groups):
    return DataLoader([batch_of(group) for group in groups], batch_size=None)


def make_trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **{"max_epochs": 1, **quiet, **options})


def test_only_the_probe_moves_and_it_learns():
    task = small_probe(lr=6.0)
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    groups = [range(12 * i, 12 * i + 12) for i in range(10)]
    make_trainer(max_epochs=12).fit(task, batches(*groups), batches(range(200, 230)))
    moved = {name for name, value in task.net.state_dict().items() if not torch.equal(value, before[name])}
    head = "net.head"
    assert moved == {f"{head}.{name}" for name in ("0.running_mean", "0.running_var", "0.num_batches_tracked")} | {
        f"{head}.{name}" for name in ("1.weight", "1.bias")
    }
    assert task.last_scores["acc1"] == 1.0


def test_frozen_layers_stay_in_evaluation_mode():
    """Stochastic depth of the frozen encoder would make features noisy."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append({name for name, part in module.net.named_modules() if part.training})

    task = small_probe(lr=0.1)
    make_trainer(max_epochs=2, callbacks=[Watch()]).fit(task, batches(range(4)), batches(range(4)))
    assert seen == [{"net.head", "net.head.0", "net.head.1"}] * 2


def test_first_weights_are_small_and_the_norm_has_none():
    vit = build_vit("timm:vit_tiny_patch16_224", SMALL | {"num_classes": 1000, "embed_dim": 24})
    put_probe(vit)
    norm, linear = vit.net.head
    assert norm.weight is None and norm.eps == 1e-6
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.03) and not linear.bias.any()
    assert [name for name, p in vit.named_parameters() if p.requires_grad] == ["net.head.1.weight", "net.head.1.bias"]
    with pytest.raises(ValueError, match="'head' of VisionTransformer is Sequential"):
        put_probe(vit)


def test_encoder_from_pretraining_and_a_trained_probe(tmp_path):
    torch.manual_seed(3)
    mae = MaskedAutoencoder(**SMALL, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
    torch.save({"model": mae.state_dict()}, tmp_path / "mae.pth")
    first = small_probe(checkpoint=str(tmp_path / "mae.pth"))
    with pytest.raises(ValueError, match="load='finetune' made a new head, which nothing has trained yet"):
        make_trainer().validate(first, batches([0, 1]), verbose=False)
    assert torch.equal(first.net.net.blocks[0].attn.qkv.weight, mae.blocks[0].attn.qkv.weight)
    first.net.net.head[0].running_mean.uniform_()
    # as the original repository writes a probe
    torch.save({"model": first.net.net.state_dict(), "epoch": 89}, tmp_path / "probe.pth")
    second = small_probe(1, checkpoint=str(tmp_path / "probe.pth"), load="continue")
    for (name, ours), theirs in zip(second.net.state_dict().items(), first.net.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    with pytest.raises(ValueError, match=r"missing head.0.running_mean"):
        small_probe(checkpoint=str(tmp_path / "mae.pth"), load="continue")


def test_a_frozen_network_is_explained():
    task = small_probe().eval()
    (images,) = task.prepare(batch_of([1, 2]))
    target = lambda outputs: class_targets(outputs["logits"], rows=task.net.readout(outputs))  # noqa: E731
    explanation = explain(task.net, (images,), target, GenericRelevance())
    assert explanation.grid().shape == (2, 2, 2) and (explanation.grid() > 0).any()
    assert all(parameter.grad is None for parameter in task.parameters())


def test_two_processes_evaluate_as_one(in_two_processes, tmp_path):
    """Also after training, in which each process has normed its own images: all evaluate the first one's statistics."""
    in_two_processes(__file__, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["probe"] == second["probe"] and first["painting"] == second["painting"]

    task = small_probe()
    task.net.load_state_dict(first["weights"])
    make_trainer().validate(task, batches([0, 1, 2, 3], [4, 5]), verbose=False)
    assert task.last_scores == pytest.approx(first["probe"], rel=1e-5)
    painter = small_painter()
    make_trainer().validate(painter, batches([0, 1, 2, 3], [4, 5]), verbose=False)
    assert painter.last_scores["loss"] == pytest.approx(first["painting"]["loss"], rel=1e-6)


def small_painter() -> MAEPretraining:
    torch.manual_seed(4)
    return MAEPretraining(MaskedAutoencoder(**SMALL, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2))


def process(folder: Path) -> None:
    """One of two processes: train the probe for a step and evaluate, then evaluate a masked autoencoder."""
    rank = int(os.environ["RANK"])
    settings = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    shares = batches([0, 1, 2, 3]) if rank == 0 else batches([4, 5])
    task = small_probe(lr=0.1)
    make_trainer(**settings).fit(task, batches([2, 3, 4] if rank == 0 else [0, 7, 8]), shares)
    painter = small_painter()
    make_trainer(**settings).validate(painter, shares, verbose=False)
    result = {"probe": task.last_scores, "painting": painter.last_scores, "weights": task.net.state_dict()}
    torch.save(result, folder / f"{rank}.pt")


if __name__ == "__main__":
    process(Path(sys.argv[1]))

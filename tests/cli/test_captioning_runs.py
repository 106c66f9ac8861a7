"""The commands with a captioner, as a user types them."""

import json
from pathlib import Path

from lightning_xai.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "demo_captions.yaml"
SMALL = ["--model.net.hidden_dim", "8", "--data.n_val", "6", "--data.n_test", "5", "--model.max_words", "6"]


def test_fit_test_and_predict(tmp_path, capsys):
    options = ["--config", str(CONFIG), "--run_dir", str(tmp_path), "--trainer.enable_progress_bar", "false", *SMALL]
    sizes = ["--data.n_train", "16", "--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    main(["fit", *options, *sizes])
    said = capsys.readouterr().out
    assert "BLEU-4=" in said and "swap=" in said
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert {"train_loss", "test_loss", "test_BLEU-4", "test_CIDEr", "test_swap"} <= set(json.loads(line))
    assert len(list((tmp_path / "pictures" / "captions").rglob("*.png"))) == 3
    main(["test", *options, "--ckpt_path", "best"])
    said = capsys.readouterr().out
    assert "swap 0.0" in said and "gradient_x_input" in said
    methods = ["attention", "gradient_x_input", "occlusion", "random", "chance"]
    assert list(json.loads((tmp_path / "explanations.json").read_text())) == methods
    beams = ["--model.beam_width", "2", "--model.sentences", "2", "--model.metrics", "[bleu,graph_structure]"]
    parser = "{class_path: lightning_xai.evaluate.graph_structure.RuleParser}"
    main(["test", *options, *beams, "--model.parser", parser, "--model.word_methods", "[]", "--ckpt_path", "last"])
    assert list(json.loads((tmp_path / "explanations.json").read_text())) == ["attention", "random", "chance"]
    best, last = json.loads((tmp_path / "scores.json").read_text())
    assert (best["checkpoint"], last["checkpoint"]) == ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
    assert "CIDEr" in best and {"G", "G_o", "G_a", "G_r", "Div-1/sentences", "grounding"} <= set(last)
    main(["predict", *options, "--ckpt_path", "last", "--model.beam_width", "2"])
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert list(captions) == [f"test00000{number}_0" for number in range(5)]
    assert all(len(entry) == 1 and isinstance(entry[0], str) for entry in captions.values())


def test_published_configurations(tmp_path):
    """Sizes and conventions of MSCOCO and Visual Genome."""
    from lightning_xai.cli.training import TrainingCLI

    for folder in (
        "annotation/controllable",
        "ordered_feature/MP/resnet101.ctrl",
        "ordered_feature/SA/X_101_32x8d/objrels",
    ):
        (tmp_path / folder).mkdir(parents=True)
    first = {}
    for name, vocabulary, words, epochs in (("coco", 10000, 25, 100), ("vg", 6000, 15, 20)):
        config = str(CONFIG.with_name(f"ega_{name}.yaml"))
        cli = TrainingCLI(["--config", config, "--data.root", str(tmp_path), "--trainer.accelerator", "cpu"], run=False)
        assert (cli.model.net.vocabulary, cli.model.max_words, cli.datamodule.max_words) == (vocabulary, words, words)
        assert cli.trainer.max_epochs == epochs and cli.datamodule.batch_size == 128 and cli.model.lr == 2e-4
        assert cli.datamodule.inclusive == (name == "coco")
        first[name] = cli.model.net.state_dict()
    assert first["coco"]["attn_encoder.layers.0.weight"].shape == (6, 512, 512)
    assert first["vg"]["attn_encoder.layers.0.weight"].shape == (6, 2048, 512)
    assert set(first["coco"]) - set(first["vg"]) == {
        f"attn_encoder.first_embedding.0.{part}" for part in ("weight", "bias")
    }

"""intervene: what each layer, head, level and point of deformable attention is worth to AP."""

import argparse
from pathlib import Path

from lightning_xai.evaluate.interventions import KINDS, ablate, print_table, write_csv, write_json


class Together:
    """Several interventions as one."""

    def __init__(self, interventions: list) -> None:
        self.interventions = interventions

    def applied(self, net):
        from lightning_xai.explain.intervention import intervene

        return intervene(net, self.interventions)


def run(command: str, words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "lightning-xai intervene",
        description="AP on the validation data with each layer, head, level or point of deformable attention muted.",
        epilog="All other options are those of `validate`: --config FILE, --trainer.x, --model.x, --data.x.",
    )
    parser.add_argument("--ckpt_path", type=Path, help="checkpoint of this project (or give --model.checkpoint FILE)")
    parser.add_argument("--by", nargs="+", choices=KINDS, default=("head", "level"), help="what is muted one by one")
    parser.add_argument("--part", nargs="+", choices=("encoder", "decoder"), help="default: both")
    parser.add_argument("--mode", choices=("zero", "renormalise"), default="zero", help="weights after muting")
    parser.add_argument("--out", type=Path, help="table without ending (default: <run folder>/interventions)")
    options, rest = parser.parse_known_args(words)

    from lightning_xai.callbacks.deformable_views import DeformableAttentionViews
    from lightning_xai.callbacks.explanations import ExplanationCallback
    from lightning_xai.cli.checkpointed import configured_with_weights

    cli = configured_with_weights(rest, options.ckpt_path)

    if cli.model.intervention is not None:
        raise SystemExit("intervene compares with no intervention at all; leave --model.intervention out")
    # pictures would be drawn once more for every trial, of a network that is muted
    drawing = (DeformableAttentionViews, ExplanationCallback)
    cli.trainer.callbacks = [callback for callback in cli.trainer.callbacks if not isinstance(callback, drawing)]

    def evaluate(interventions: list) -> dict[str, float]:
        cli.model.intervention = Together(interventions) if interventions else None
        cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
        return cli.model.last_ap

    rows = ablate(cli.model.net, evaluate, options.part, options.by, options.mode)
    if cli.trainer.is_global_zero:
        print_table(rows)
        out = options.out or cli.run_dir / "interventions"
        out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(rows, out.with_suffix(".csv"))
        write_json(rows, out.with_suffix(".json"))
        print(out.with_suffix(".csv"), out.with_suffix(".json"), sep="\n")
    return 0

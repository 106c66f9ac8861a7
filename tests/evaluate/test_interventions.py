"""The table of what each head, level, layer and point is worth."""

import csv
import io
import json

import pytest
import torch
from ms_deform_attn import MSDeformAttn
from rich.console import Console
from torch import nn

from lightning_xai.evaluate.interventions import METRICS, ablate, print_table, write_csv, write_json
from lightning_xai.explain.intervention import intervene
from lightning_xai.explain.streams import Site


class OneLayerEach(nn.Module):
    """One encoder layer with 2 heads, 3 levels and 1 point; one decoder layer with 2 points."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = MSDeformAttn(8, 3, 2, 1), MSDeformAttn(8, 3, 2, 2)

    def sites(self):
        return [Site(part, "deformable", "image", "image", part, 0) for part in ("encoder", "decoder")]


def evaluated(interventions):
    """AP falls by 0.1 with head 1 of the decoder muted, rises by 0.05 with level 2 of the encoder; no small objects."""
    ap = 0.5
    for intervention in interventions:
        ap -= 0.1 * (intervention.part == "decoder" and intervention.heads == [1])
        ap += 0.05 * (intervention.part == "encoder" and intervention.levels == [2])
    return {"AP": torch.tensor(ap), "AP50": ap + 0.2, "APs": -1.0, "APm": ap, "APl": float("nan"), "AR1": 0.1}


def test_each_one_is_muted_once():
    rows = ablate(OneLayerEach(), evaluated)
    named = [(row.part, row.muted, row.index) for row in rows]
    assert named[0] == ("all", "nothing", None)
    assert named[1:] == [
        *(
            ("encoder", kind, i)
            for kind, n in (("layer", 1), ("head", 2), ("level", 3), ("point", 1))
            for i in range(n)
        ),
        *(
            ("decoder", kind, i)
            for kind, n in (("layer", 1), ("head", 2), ("level", 3), ("point", 2))
            for i in range(n)
        ),
    ]
    changes = {name: row.changes["AP"] for name, row in zip(named[1:], rows[1:], strict=True)}
    assert changes.pop(("decoder", "head", 1)) == pytest.approx(-0.1)
    assert changes.pop(("encoder", "level", 2)) == pytest.approx(0.05)
    assert set(changes.values()) == {0.0}
    assert all(row.numbers["APs"] is row.changes["APs"] is row.numbers["APl"] is None for row in rows)


def test_choice_of_parts_kinds_and_mode():
    handed = []

    def evaluate(interventions):
        handed.extend(interventions)
        return evaluated(interventions)

    rows = ablate(OneLayerEach(), evaluate, parts=["decoder"], kinds=["level"], mode="renormalise")
    assert len(rows) == 4
    assert [(i.part, i.levels, i.action, i.mode) for i in handed] == [
        ("decoder", [index], "mute", "renormalise") for index in range(3)
    ]
    for intervention in handed:
        with intervene(OneLayerEach(), [intervention]):
            pass
    with pytest.raises(ValueError, match="no part 'neck'; the network has encoder, decoder"):
        ablate(OneLayerEach(), evaluated, parts=["neck"])
    with pytest.raises(ValueError, match="cannot mute each 'channel'; choose from layer, head, level, point"):
        ablate(OneLayerEach(), evaluated, kinds=["channel"])


def test_table_and_files(tmp_path):
    rows = ablate(OneLayerEach(), evaluated, kinds=["head"])
    out = io.StringIO()
    print_table(rows, Console(file=out, width=80))
    printed = [line for line in out.getvalue().splitlines() if "decoder" in line and "head 1" in line]
    assert "40.0 -10.0" in printed[0]
    assert "60.0 -10.0" in printed[0]

    write_csv(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 5
    assert float(read[-1]["AP_change"]) == pytest.approx(-0.1)
    assert read[-1]["APs"] == read[0]["index"] == ""

    write_json(rows, tmp_path / "table.json")
    read = json.loads((tmp_path / "table.json").read_text())
    assert read[0]["numbers"]["AP"] == pytest.approx(0.5)
    assert read[0]["numbers"]["APl"] is None
    assert set(read[-1]["changes"]) == set(METRICS)

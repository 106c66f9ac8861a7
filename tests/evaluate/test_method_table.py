import csv
import json
import math

from lightning_xai.evaluate.method_table import method_table, write_csv, write_json

TABLE = {"ours": {"AP": 0.13149, "images": 12}, "a_longer_name": {"AP": math.nan, "images": 12, "AUC": 31.5}}


def test_rows_are_aligned_and_undefined_numbers_are_dashes():
    lines = method_table(TABLE).splitlines()
    assert lines[0].split() == ["method", "AP", "images", "AUC"]
    assert [line.split() for line in lines[2:]] == [
        ["ours", "0.131", "12", "–"],
        ["a_longer_name", "–", "12", "31.500"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_files_hold_every_digit(tmp_path):
    write_csv(TABLE, tmp_path / "table.csv")
    write_json(TABLE, tmp_path / "table.json")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"method": "ours", "AP": "0.13149", "images": "12", "AUC": ""}
    assert rows[1] == {"method": "a_longer_name", "AP": "", "images": "12", "AUC": "31.5"}
    content = json.loads((tmp_path / "table.json").read_text())
    assert content == {"ours": TABLE["ours"], "a_longer_name": {"AP": None, "images": 12, "AUC": 31.5}}

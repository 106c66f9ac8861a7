"""The README's programs run as they stand."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def program(with_text: str) -> str:
    (found,) = [text for text in PROGRAMS if with_text in text]
    return found


def test_explain_your_own_model_in_twenty_lines():
    text = program("class MyNet")
    declared = text.split("# what explanations need")[1].split("# explain it")[0]
    assert len(declared.strip().splitlines()) <= 20
    names: dict = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["heat"].shape == (2, 32, 32)
    assert names["heat"].isfinite().all() and names["heat"].amax() > names["heat"].amin()


def test_explaining_a_vision_transformer_from_python(tmp_path):
    timm = pytest.importorskip("timm")
    text = program("build_vit")
    file = tmp_path / "jx_vit_base_p16_224.pth"
    small = '"timm:vit_tiny_patch16_224"'
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), file)
    text = text.replace('"timm:vit_base_patch16_224"', small).replace('"jx_vit_base_p16_224.pth"', repr(str(file)))
    names: dict = {"images": torch.randn(2, 3, 224, 224)}
    exec(compile(text, "README.md", "exec"), names)
    assert names["heat"].shape == (2, 224, 224)

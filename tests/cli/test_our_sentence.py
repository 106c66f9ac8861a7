"""Sentences for the user are told from mistakes by where and how they were raised."""

import pytest
from torch.utils.data import DataLoader, Dataset

from lightning_xai.cli.our_sentence import our_sentence
from lightning_xai.data.scene import SceneRecipe
from lightning_xai.explain.methods import method


def caught(call) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def wrapped():
    try:
        method("saliency")
    except ValueError as error:
        raise RuntimeError("a library's dump of the whole configuration") from error


def test_what_this_project_raises():
    assert our_sentence(caught(lambda: method("saliency"))).startswith("there is no explanation method 'saliency'")
    assert our_sentence(caught(wrapped)).startswith("there is no explanation method 'saliency'")


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: int("seven"),
        lambda: SceneRecipe(height=None),  # raised within a file of ours, but by an operator
        lambda: {}["missing"],
    ],
)
def test_mistakes_keep_their_traceback(mistake):
    assert our_sentence(caught(mistake)) is None


class Broken(Dataset):
    """Each sample is another error."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 0:
            method("saliency")
        if index == 1:
            wrapped()
        if index == 2:
            try:
                method("saliency")
            except ValueError as error:
                raise KeyError("a library's") from error
        return {}["missing"]


@pytest.mark.parametrize("index", range(4))
def test_workers_that_load_data_say_the_same(index):
    loader = DataLoader(Broken(), sampler=[index], num_workers=1)
    direct, worker = caught(lambda: Broken()[index]), caught(lambda: next(iter(loader)))
    assert "DataLoader worker process 0" in str(worker)
    assert our_sentence(worker) == our_sentence(direct)
    assert (our_sentence(worker) is None) == (index == 3)

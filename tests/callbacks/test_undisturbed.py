"""What callbacks do to a network leaves no trace."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import nn

from lightning_xai.callbacks.undisturbed import require_whole_network, undisturbed


def test_random_numbers_and_modes_stay(trainer):
    net = nn.Sequential(nn.Dropout(), nn.Dropout())
    net[1].eval()
    state = torch.get_rng_state()
    with undisturbed(trainer(), net):
        torch.rand(3)
        assert not any(m.training for m in net.modules()) and torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state) and not torch.is_inference_mode_enabled()
    with pytest.raises(ZeroDivisionError), undisturbed(trainer(), net):
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == [True, True, False]


def test_a_network_in_pieces_is_refused():
    callback = pl.Callback()
    require_whole_network(SimpleNamespace(strategy=None), callback)
    with pytest.raises(RuntimeError, match="Callback runs the network on the first process alone, which FSDPStrategy"):
        require_whole_network(SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy)), callback)

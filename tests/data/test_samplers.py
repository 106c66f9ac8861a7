from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_xai.data.samplers import (
    EvaluationSampler,
    TrainingSampler,
    contiguous_order,
    epoch_order,
    node_order,
    resume_position,
    strided_order,
)


@pytest.mark.parametrize("replicas, batch_size", [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_global_batches_do_not_depend_on_the_number_of_processes(replicas, batch_size):
    orders = [strided_order(23, epoch=4, rank=rank, replicas=replicas, seed=5) for rank in range(replicas)]
    expected = epoch_order(23, epoch=4, seed=5)
    for k in range(3):
        batch = {i for order in orders for i in order[k * batch_size : (k + 1) * batch_size]}
        assert batch == set(expected[k * 6 : (k + 1) * 6])
    assert len({len(order) for order in orders}) == 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_strided_order_is_torchs_distributed_sampler(shuffle):
    for rank in range(4):
        theirs = DistributedSampler(range(23), 4, rank, shuffle=shuffle, seed=7, drop_last=True)
        theirs.set_epoch(3)
        assert strided_order(23, 3, rank, 4, seed=7, shuffle=shuffle) == list(theirs)


def test_order_depends_on_seed_and_epoch():
    orders = [epoch_order(50, epoch, seed) for epoch, seed in [(0, 0), (1, 0), (0, 9)]]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_contiguous_order_wraps():
    orders = [contiguous_order(5, 0, rank, 2, shuffle=False) for rank in range(2)]
    assert orders == [[0, 1, 2], [3, 4, 0]]
    assert contiguous_order(1, 0, 2, 4, shuffle=False) == [0]


def test_node_order_stays_within_a_process_own_share():
    orders = [node_order(22, 1, rank, 4, local_rank=rank % 2, local_size=2) for rank in range(4)]
    for rank, order in enumerate(orders):
        assert all(i % 2 == rank % 2 for i in order)
    assert {i for order in orders for i in order} == set(range(22))


def test_training_sampler_tells_workers_the_epoch():
    sampler = TrainingSampler(partial(strided_order, 6, rank=0, replicas=1))
    sampler.set_epoch(2)
    assert [epoch for epoch, _ in sampler] == [2] * 6
    assert [index for _, index in sampler] == epoch_order(6, 2)


def test_training_sampler_starts_in_mid_epoch_only_once():
    sampler = TrainingSampler(partial(strided_order, 10, rank=0, replicas=1), start=(3, 4))
    assert len(sampler) == 10
    assert [index for _, index in sampler] == epoch_order(10, 3)[4:]
    sampler.set_epoch(4)
    assert [index for _, index in sampler] == epoch_order(10, 4)


@pytest.mark.parametrize("length", [5, 8, 13])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_evaluation_batches_are_those_of_one_process(length, replicas):
    def batches(rank, replicas):
        sampler = EvaluationSampler(length, 2, rank, replicas)
        return list(DataLoader(list(range(length)), 2, sampler=sampler, collate_fn=tuple))

    shares = [batches(rank, replicas) for rank in range(replicas)]
    assert sorted(batch for share in shares for batch in share) == batches(0, 1)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_has_something_to_evaluate():
    shares = [EvaluationSampler(7, 32, rank, 3).indices for rank in range(3)]
    assert shares == [[0, 1, 6], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="2 samples cannot be shared by 3 processes"):
        EvaluationSampler(2, 1, 0, 3)


def progress(**counts):
    return SimpleNamespace(current=SimpleNamespace(**counts))


def test_resume_position():
    def position(restarting, epochs, batches, is_last_batch=False):
        batch_progress = progress(**batches)
        batch_progress.is_last_batch = is_last_batch
        loop = SimpleNamespace(
            restarting=restarting,
            epoch_progress=progress(**epochs),
            epoch_loop=SimpleNamespace(batch_progress=batch_progress),
        )
        return resume_position(SimpleNamespace(fit_loop=loop))

    mid_epoch = {"started": 4, "processed": 3}
    at_batch_end = {"ready": 7, "processed": 7, "completed": 6}
    assert resume_position(None) == (0, 0)
    assert position(False, {"started": 3, "processed": 3}, at_batch_end) == (3, 0)
    assert position(True, mid_epoch, at_batch_end) == (3, 7)
    assert position(True, mid_epoch, {"ready": 7, "processed": 6, "completed": 6}) == (3, 6)
    assert position(True, mid_epoch, at_batch_end, is_last_batch=True) == (4, 0)


def test_orders_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    epoch_order(100, 3)
    assert torch.equal(before, torch.get_rng_state())

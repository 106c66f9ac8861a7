"""What all processes predicted comes to one place, each sample once and in order."""

from types import SimpleNamespace

import pytest
import torch.distributed as dist

from lightning_xai.callbacks.prediction_writer import PredictionWriter


class Kept(PredictionWriter):
    written = None

    def collect(self, trainer, pl_module, prediction):
        yield from prediction

    def write(self, trainer, entries):
        self.written = list(entries.items())


def process(rank: int, count: int) -> SimpleNamespace:
    return SimpleNamespace(world_size=count, is_global_zero=rank == 0)


def predict(writer: Kept, *batches) -> Kept:
    writer.on_predict_start(None, None)
    for batch in batches:
        writer.write_on_batch_end(None, None, batch, None, None, 0, 0)
    return writer


def test_one_process_starts_anew_each_time():
    writer = predict(Kept(), [(9, "before")])
    predict(writer, [(4, "a"), (1, "b")], [(4, "again")])
    writer.write_on_epoch_end(process(0, 1), None, [], [])
    assert writer.written == [(1, "b"), (4, "a")]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_writes_what_all_found(monkeypatch, rank):
    writers = [predict(Kept(), [(3, "first"), (0, "first")]), predict(Kept(), [(2, "second"), (3, "second")])]

    def gather(parts, own):
        assert own is writers[rank].entries
        parts[:] = [writer.entries for writer in writers]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    writers[rank].write_on_epoch_end(process(rank, 2), None, [], [])
    assert writers[rank].written == (None if rank else [(0, "first"), (2, "second"), (3, "first")])

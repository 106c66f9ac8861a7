import multiprocessing

import pytest

from lightning_xai.data.picture_faults import OTHER_SIZE, UNREADABLE, PictureFaults


def test_a_fraction_allows_one_at_least():
    assert PictureFaults(10, 0.01).allowed == 1
    assert PictureFaults(1000, 0.01).allowed == 10
    assert PictureFaults(10, 0.0).allowed == 0
    assert PictureFaults(10, 3).allowed == 3
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="max_bad_images"):
            PictureFaults(10, wrong)


def mark_in_worker(faults):
    faults.mark(3, UNREADABLE)


def test_faults_of_a_worker_are_known_to_all():
    faults = PictureFaults(5, 1)
    worker = multiprocessing.get_context("fork").Process(target=mark_in_worker, args=(faults,))
    worker.start()
    worker.join()
    assert faults.is_unreadable(3) and faults.unreadable().tolist() == [3]


def test_each_fault_is_news_once():
    faults = PictureFaults(20, 10)
    assert faults.news(str, str) is None
    faults.mark(3, UNREADABLE)
    faults.mark(3, OTHER_SIZE)
    line = faults.news(lambda i: f"<{i}>", lambda i: f"[{i}]")
    assert "1 unreadable" in line and "<3>" in line and "1 pictures of another size" in line and "[3]" in line
    assert faults.news(str, str) is None
    for index in range(10, 17):
        faults.mark(index, UNREADABLE)
    line = faults.news(lambda i: f"<{i}>", str)
    assert "7 unreadable" in line and "8 of 20 so far" in line and "<14>, ..." in line and "<15>" not in line

import pickle

from lightning_xai.data.image_cache import ImageCache


def test_holds_the_bytes_of_its_share(tmp_path):
    paths = [tmp_path / str(i) for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * (i + 1))
    cache = ImageCache(paths, [0, 2, 4])
    for path in paths:
        path.unlink()
    assert bytes(cache.get(2).tolist()) == b"\2\2\2" and bytes(cache.get(4).tolist()) == b"\4" * 5
    assert cache.get(1) is None
    assert len(cache) == 3 and cache.nbytes == 1 + 3 + 5
    assert pickle.loads(pickle.dumps(cache)).get(0).tolist() == [0]


def test_missing_and_empty_files_are_left_out(tmp_path):
    paths = [tmp_path / "full", tmp_path / "empty", tmp_path / "missing"]
    paths[0].write_bytes(b"abc")
    paths[1].write_bytes(b"")
    cache = ImageCache(paths, range(3))
    assert len(cache) == 1 and cache.get(1) is None and cache.get(2) is None

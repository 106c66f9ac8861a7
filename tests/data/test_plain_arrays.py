"""Arrays of Python objects: refused where data are read, converted on request, never run."""

import pickle

import numpy as np
import pytest

from lightning_xai.data.plain_arrays import holds_objects, plain_array, read_array


class Evil:
    """Unpickling it calls a function of its author's choice."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def save(file, entries):
    array = np.empty(len(entries), dtype=object)
    array[:] = entries
    np.save(file, array, allow_pickle=True)
    return file


def test_plain_arrays_are_read(tmp_path):
    np.save(tmp_path / "words.npy", np.array(["a", "bc"]))
    assert read_array(tmp_path / "words.npy").tolist() == ["a", "bc"]
    assert isinstance(read_array(tmp_path / "words.npy", memory_mapped=True), np.memmap)
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        read_array(tmp_path / "none.npy")


def test_objects_are_refused_with_the_command_that_converts_them(tmp_path):
    file = save(tmp_path / "names.npy", ["a", "b"])
    assert holds_objects(file)
    with pytest.raises(ValueError, match=r"names\.npy holds Python objects.*lightning-xai convert-arrays"):
        read_array(file)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_arrays(tmp_path, content):
    file = tmp_path / "broken.npy"
    file.write_bytes(content)
    for reader in (read_array, plain_array):
        with pytest.raises(ValueError, match=r"broken\.npy: no array"):
            reader(file)


@pytest.mark.parametrize(
    "entries, expected",
    [
        (["a", "bcd"], ["a", "bcd"]),
        ([b"a", np.str_("\u00fc")], ["a", "\u00fc"]),
        ([["im0", 7], ["im1", 12]], [["im0", "7"], ["im1", "12"]]),
        ([("im0", "7"), ("im1", "12")], [["im0", "7"], ["im1", "12"]]),
        ([1, 2.5, np.int64(3)], [1.0, 2.5, 3.0]),
        ([np.array(["a", "b"]), np.array(["c", "d"])], [["a", "b"], ["c", "d"]]),
    ],
)
def test_numbers_and_strings_are_converted(tmp_path, entries, expected):
    converted = plain_array(save(tmp_path / "names.npy", entries))
    assert converted.tolist() == expected and not converted.dtype.hasobject


def test_an_array_of_pairs_of_objects(tmp_path):
    pairs = np.array([["im0", 7], ["im1", 12]], dtype=object)
    np.save(tmp_path / "pairs.npy", pairs, allow_pickle=True)
    assert plain_array(tmp_path / "pairs.npy").tolist() == [["im0", "7"], ["im1", "12"]]


# What numpy under Python 2 wrote for an array of the two strings "a" and "\xc3\xbc" (in UTF-8).
OF_PYTHON_2 = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\n"
    b"tR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbI00\n(lS'a'\naS'\\xc3\\xbc'\natb."
)


@pytest.mark.parametrize("protocol", [0, 2, "python 2"])
def test_pickles_of_old_pythons(tmp_path, protocol):
    array = np.empty(2, dtype=object)
    array[:] = ["a", "\u00fc"]
    pickled = OF_PYTHON_2 if protocol == "python 2" else pickle.dumps(array, protocol)
    with (tmp_path / "old.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        stream.write(pickled.replace(b"numpy._core", b"numpy.core"))
    assert plain_array(tmp_path / "old.npy").tolist() == ["a", "\u00fc"]


def test_nothing_in_a_file_is_run(tmp_path):
    file = save(tmp_path / "evil.npy", ["a", Evil(tmp_path / "ran")])
    with pytest.raises(ValueError, match=r"evil\.npy is not converted: it asks for (_io|io|builtins)\.open"):
        plain_array(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "entries, reason",
    [
        ([["a"], ["b", "c"]], "different lengths"),
        ([{"a": 1}, {"b": 2}], "it holds dict"),
        (["a", None], "it holds NoneType"),
    ],
)
def test_what_no_plain_array_can_hold(tmp_path, entries, reason):
    with pytest.raises(ValueError, match=rf"names\.npy is not converted: .*{reason}"):
        plain_array(save(tmp_path / "names.npy", entries))


def test_plain_arrays_need_no_conversion(tmp_path):
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(ValueError, match="no Python objects but int64"):
        plain_array(tmp_path / "plain.npy")

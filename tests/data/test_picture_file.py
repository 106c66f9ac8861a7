import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_xai.data import picture_file
from lightning_xai.data.picture_file import UnreadablePicture, decode_picture, list_pictures, read_bytes

SMALL = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PICTURE = Image.fromarray(SMALL).resize((80, 60), Image.Resampling.BICUBIC)
DEEP_GREY = np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257


def encoded(picture, format, **options):
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def as_bytes(data):
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


@pytest.mark.parametrize(
    "mode, format",
    [
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"),
        ("LA", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("RGB", "WEBP"), ("RGB", "BMP"), ("P", "BMP"), ("L", "TIFF"),
        ("CMYK", "TIFF"), ("RGB", "PPM"),
    ],
)  # fmt: skip
def test_every_kind_becomes_the_rgb_that_pillow_makes_of_it(mode, format):
    data = encoded(PICTURE.convert(mode), format)
    image = decode_picture(as_bytes(data), "x")
    assert image.dtype == torch.uint8 and image.shape == (3, 60, 80) and image.stride() == (1, 240, 3)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_high_byte(format):
    image = decode_picture(as_bytes(encoded(Image.fromarray(DEEP_GREY), format)), "x")
    expected = torch.from_numpy((DEEP_GREY >> 8).astype(np.uint8))
    assert torch.equal(image, expected.expand(3, -1, -1))


def test_an_animation_gives_its_first_frame():
    first, second = PICTURE.convert("P"), PICTURE.rotate(180).convert("P")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert torch.equal(decode_picture(as_bytes(data), "x"), decode_picture(as_bytes(encoded(first, "GIF")), "x"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_ignored_unless_asked_for(format):
    exif = Image.Exif()
    exif[0x112] = 6
    data = as_bytes(encoded(PICTURE, format, exif=exif))  # "turn by a quarter to the right to see it upright"
    upright = decode_picture(data, "x")
    turned = decode_picture(data, "x", apply_exif_orientation=True)
    assert upright.shape == (3, 60, 80)
    assert torch.equal(turned, upright.rot90(-1, (1, 2)))


def test_without_torchvisions_decoder_pillow_gives_the_same(monkeypatch):
    data = as_bytes(encoded(PICTURE, "JPEG"))
    image = decode_picture(data, "x")
    monkeypatch.setattr(picture_file, "DECODED_BY_TORCHVISION", set())
    again = decode_picture(data, "x")
    assert torch.equal(image, again) and image.stride() == again.stride()


JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture at all" * 9, JPEG[: len(JPEG) // 2], JPEG[:-2], JPEG[:30], PNG[: len(PNG) // 2], PNG[:40]],
    ids=["empty", "text", "half JPEG", "JPEG without end", "JPEG header", "half PNG", "PNG header"],
)
def test_damaged_files_are_named(data):
    with pytest.raises(UnreadablePicture, match="some/file"):
        decode_picture(as_bytes(data), "some/file")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_flipped_bytes_give_a_picture_or_the_one_error(format):
    draw = np.random.default_rng(0)
    good = np.frombuffer(encoded(PICTURE, format), dtype=np.uint8)
    for _ in range(40):
        damaged = good.copy()
        damaged[draw.integers(0, min(len(good), 200), 3)] = draw.integers(0, 256, 3)
        try:
            assert decode_picture(torch.from_numpy(damaged), "x", max_pixels=10**6).shape[0] == 3
        except UnreadablePicture:
            continue


def test_a_floating_point_picture_is_refused():
    picture = Image.fromarray(np.zeros((4, 5), dtype=np.float32))
    with pytest.raises(UnreadablePicture, match="floating-point"):
        decode_picture(as_bytes(encoded(picture, "TIFF")), "x")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (9500, 9500)), "PNG")  # some kilobytes that would become 270 MB
    assert len(bomb) < 50_000
    with pytest.raises(UnreadablePicture, match=r"bomb\.png: 9500×9500 is more than"):
        decode_picture(as_bytes(bomb), "bomb.png")
    with pytest.raises(UnreadablePicture, match=r"80×60 is more than max_pixels=4799"):
        decode_picture(as_bytes(PNG), "x", max_pixels=4799)
    assert decode_picture(as_bytes(PNG), "x", max_pixels=4800).shape == (3, 60, 80)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadablePicture, match=r"gone\.jpg.*No such file"):
        read_bytes(tmp_path / "gone.jpg")


def test_list_pictures(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_pictures(tmp_path)] == ["a.JPG", "b.png"]
    assert list_pictures(str(tmp_path / "b.png")) == [tmp_path / "b.png"]
    assert list_pictures([str(tmp_path / "b.png"), str(tmp_path / "a.JPG")])[1].name == "a.JPG"
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list_pictures(str(tmp_path / "c.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture in this folder"):
        list_pictures(str(tmp_path / "empty"))

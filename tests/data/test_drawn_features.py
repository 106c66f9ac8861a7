"""Fixed features of regions."""

import numpy as np
import pytest

from lightning_xai.data.drawn_features import (
    CELLS,
    DIRECTIONS,
    FEATURE_SIZE,
    GRADIENTS,
    PLACE,
    THUMBNAIL,
    region_features,
)

THUMBNAILS = THUMBNAIL * THUMBNAIL * 3


def test_colour_place_and_direction():
    pixels = np.zeros((3, 40, 80), np.uint8)
    pixels[0, :20, :40] = 255  # the upper left quarter is red
    pixels[:, 20:, 40:] = np.linspace(0, 255, 40).astype(np.uint8)  # brighter to the right
    features = region_features(pixels, np.array([[0, 0, 40, 20], [40, 20, 80, 40]]))
    assert features.shape == (2, FEATURE_SIZE) and features.dtype == np.float32
    thumbnail = features[0, :THUMBNAILS].reshape(THUMBNAIL, THUMBNAIL, 3)
    assert (thumbnail == [2, -2, -2]).all()  # in units of their spread
    np.testing.assert_allclose(features[:, -4:] * PLACE[1], [[-1, -1, 0, 0], [0, 0, 1, 1]], atol=1e-6)
    mean, spread = GRADIENTS
    gradients = features[:, THUMBNAILS:-4].reshape(2, CELLS * CELLS, DIRECTIONS) * spread + mean
    np.testing.assert_allclose(gradients[0], 0, atol=1e-6)
    assert (gradients[1].argmax(1) == 0).all() and gradients[1, :, 1:].max() < 1e-5
    np.testing.assert_allclose((gradients[1] ** 2).mean(), 1, rtol=1e-3)
    turned = region_features(pixels.transpose(0, 2, 1), np.array([[20, 40, 40, 80]]))[0, THUMBNAILS:-4]
    assert (turned.reshape(-1, DIRECTIONS).argmax(1) == DIRECTIONS // 4).all()  # brighter downwards


def test_only_the_box_is_read():
    random = np.random.default_rng(0)
    pixels, box = random.integers(0, 256, (3, 32, 32), dtype=np.uint8), np.array([[5, 7, 23, 21]])
    other = random.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    other[:, 7:21, 5:23] = pixels[:, 7:21, 5:23]
    assert np.array_equal(region_features(pixels, box), region_features(other, box))


def test_a_box_without_area():
    with pytest.raises(ValueError, match=r"box \[4.0, 2.0, 4.0, 8.0\] has no area"):
        region_features(np.zeros((3, 8, 8), np.uint8), np.array([[4, 2, 4, 8]]))

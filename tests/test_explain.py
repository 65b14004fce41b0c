"""Explanations against closed forms, brute force and a planted cue, on every backend."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.special import softmax

from backends import read_results
from shiftvit import ShiftViT, ShiftViTError
from shiftvit.backend import BACKENDS
from shiftvit.evaluation.explain import grad_cam, occlusion, predict_probabilities, split_model
from shiftvit.figures.evaluation import COLOURS, overlay
from tensors import draw_normal, set_random_weights, to_numpy

SMALL = {"image_shape": (24, 16, 3), "num_classes": 4, "patch_size": 2, "embed_dim": 24, "depths": (1, 2)}
IMAGES = draw_normal(3, 24, 16, 3)


def make_model(seed=0, **arguments):
    model = ShiftViT(**{**SMALL, **arguments})
    set_random_weights(model, seed)
    return model


def compute_explanations():
    """Computes the heat maps that the backends must agree on. `backend_worker.py` calls it too."""
    model = make_model(depths=(1, 1))
    return {
        "predicted": grad_cam(model, IMAGES),
        "P1": grad_cam(model, IMAGES, [0, 1, 2], "P1"),
        "occlusion": occlusion(model, IMAGES, [3, 2, 1], patch=8, stride=5, fill=4.0),
    }


@pytest.fixture(scope="module")
def explanations():
    """The heat maps of the backend of this process."""
    return compute_explanations()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_compute_the_same_explanations(explanations, backend):
    for name, found in read_results(backend)["explain"].items():
        assert found.dtype == np.float32
        assert np.ptp(explanations[name]) > 0.01, name
        np.testing.assert_allclose(found, explanations[name], rtol=0, atol=1e-3, err_msg=name)


def test_shapes_and_range(explanations):
    assert [explanations[name].shape for name in ("P1", "predicted", "occlusion")] == [
        (3, 12, 8),
        (3, 6, 4),
        (3, 24, 16),
    ]
    assert explanations["P1"].min() == 0
    np.testing.assert_array_equal(explanations["P1"].max(axis=(1, 2)), 1)


@pytest.mark.parametrize(
    "arguments", [{}, {"final_norm": False}, {"norm": "group", "depths": (1, 1, 1)}, {"norm": "batch"}]
)
def test_body_and_tail_compose_to_the_model(arguments):
    model = make_model(**arguments)
    for stage in (*model.backbone.pyramid_outputs, None):
        body, tail = split_model(model, stage)
        logits = to_numpy(tail(body(keras.ops.convert_to_tensor(IMAGES))))
        np.testing.assert_allclose(logits, to_numpy(model(IMAGES)), rtol=0, atol=1e-5)


def test_grad_cam_without_a_final_norm_equals_cam():
    """The logit is linear in the map, so Grad-CAM equals CAM (Zhou et al., CVPR 2016): the map times the head."""
    model = make_model(final_norm=False)
    body, _ = split_model(model)
    expected = np.maximum(body.predict_on_batch(IMAGES) @ model.get_layer("head").get_weights()[0][:, 2], 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(grad_cam(model, IMAGES, [2, 2, 2]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", ["P1", "P2"])
def test_channel_importance_equals_finite_differences(stage):
    """Raising a channel everywhere changes the logit by the sum of its gradients: finite differences of the tail."""
    model, step = make_model(), 1e-2
    body, tail = split_model(model, stage)
    maps = body.predict_on_batch(IMAGES[:1])  # (1, h, w, K)
    shifts = step * np.eye(maps.shape[-1], dtype=np.float32)[:, None, None]  # (K, 1, 1, K)
    up, down = (to_numpy(tail(keras.ops.convert_to_tensor(maps + sign * shifts)))[:, 1] for sign in (1, -1))
    expected = np.maximum(maps[0] @ (up - down), 0)
    np.testing.assert_allclose(grad_cam(model, IMAGES[:1], [1], stage)[0], expected / expected.max(), atol=0.01)


@pytest.mark.slow
def test_occlusion_equals_brute_force():
    model, patch, stride, fill = make_model(), 6, 4, 0.5
    whole = softmax(to_numpy(model(IMAGES[:1])), axis=1)[0, 2]
    total, covers = np.zeros((24, 16)), np.zeros((24, 16))
    for top in (0, 4, 8, 12, 16, 18):
        for left in (0, 4, 8, 10):
            image = IMAGES[:1].copy()
            image[0, top : top + patch, left : left + patch] = fill
            total[top : top + patch, left : left + patch] += whole - softmax(to_numpy(model(image)), axis=1)[0, 2]
            covers[top : top + patch, left : left + patch] += 1
    found = occlusion(model, IMAGES[:1], [2], patch=patch, stride=stride, fill=fill)
    np.testing.assert_allclose(found[0], total / covers, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_predicted_class_is_explained_by_default():
    model = make_model()
    predicted = predict_probabilities(model, IMAGES).argmax(axis=1)
    np.testing.assert_allclose(grad_cam(model, IMAGES), grad_cam(model, IMAGES, predicted), atol=1e-6)
    np.testing.assert_allclose(occlusion(model, IMAGES), occlusion(model, IMAGES, predicted), atol=1e-6)


@pytest.mark.slow
def test_no_images_and_several_batches(monkeypatch):
    model = make_model()
    assert grad_cam(model, IMAGES[:0]).shape == (0, 6, 4)
    assert occlusion(model, IMAGES[:0]).shape == (0, 24, 16)
    assert predict_probabilities(model, IMAGES[:0]).shape == (0, 4)
    whole = grad_cam(model, IMAGES), occlusion(model, IMAGES)
    monkeypatch.setattr("shiftvit.evaluation.explain.BATCH_SIZE", 2)
    np.testing.assert_allclose(grad_cam(model, IMAGES), whole[0], atol=1e-4)
    np.testing.assert_allclose(occlusion(model, IMAGES), whole[1], atol=1e-5)


def test_batches_are_bounded_by_their_pixels(monkeypatch):
    """Occlusion runs a single image of 512 x 512 pixels 50 times; all at once, that would take several gigabytes."""
    model, sizes, run = make_model(), [], keras.Model.predict_on_batch
    monkeypatch.setattr(
        keras.Model, "predict_on_batch", lambda self, batch: sizes.append(len(batch)) or run(self, batch)
    )
    whole = grad_cam(model, IMAGES, [0, 1, 2]), occlusion(model, IMAGES, [0, 1, 2])
    assert max(sizes) > 2
    sizes.clear()
    monkeypatch.setattr("shiftvit.bundle.metadata.BATCH_PIXELS", 2 * 24 * 16)
    np.testing.assert_allclose(grad_cam(model, IMAGES, [0, 1, 2]), whole[0], atol=1e-4)
    np.testing.assert_allclose(occlusion(model, IMAGES, [0, 1, 2]), whole[1], atol=1e-5)
    assert set(sizes) == {2}


def test_explaining_does_not_change_the_model():
    model = make_model()
    before = [weight.copy() for weight in model.get_weights()]
    nodes = [len(layer._inbound_nodes) for layer in model.backbone.layers]
    grad_cam(model, IMAGES, stage="P1")
    occlusion(model, IMAGES)
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before, strict=True))
    assert [len(layer._inbound_nodes) for layer in model.backbone.layers] == nodes


PATCH = 4


def draw_patch_images(count, seed):
    """Returns noise, with a bright square in every other image; labels, 1 for a square; and the squares' corners."""
    random = np.random.default_rng(seed)
    images = (0.5 * random.normal(size=(count, 16, 16, 3))).astype(np.float32)
    labels = np.arange(count) % 2
    corners = random.integers(0, 16 - PATCH + 1, (count, 2))
    for image, (top, left) in zip(images[1::2], corners[1::2], strict=True):
        image[top : top + PATCH, left : left + PATCH] += 2.0
    return images, labels, corners


def train_model(**arguments):
    """Returns a small ShiftViT that was trained to tell whether there is a square in an image."""
    keras.utils.set_random_seed(0)
    model = ShiftViT((16, 16, 3), num_classes=2, patch_size=2, embed_dim=24, depths=(1, 1), norm="layer", **arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    for step in range(100):
        model.train_on_batch(*draw_patch_images(64, step)[:2])
    return model


@pytest.fixture(scope="module")
def maps_and_squares():
    """Heat maps, in image size, of the new squares that the model recognises, and the masks of these squares."""
    model = train_model(final_norm=False)
    images, labels, corners = draw_patch_images(200, 10_000)
    predicted = predict_probabilities(model, images).argmax(axis=1)
    assert (predicted == labels).mean() > 0.97
    seen = (predicted == 1) & (labels == 1)
    squares, classes = images[seen], np.ones(seen.sum(), int)
    maps = {"occlusion": occlusion(model, squares, classes, patch=4, stride=2)}
    for stage, cell in (("P1", 2), ("P2", 4)):
        maps[stage] = np.kron(grad_cam(model, squares, classes, stage), np.ones((1, cell, cell)))
    return maps, make_masks(corners[seen])


def make_masks(corners, margin=0):
    found = np.zeros((len(corners), 16, 16), bool)
    for mask, (top, left) in zip(found, corners, strict=True):
        mask[max(0, top - margin) : top + PATCH + margin, max(0, left - margin) : left + PATCH + margin] = True
    return found


def compute_hit_rate(maps, squares):
    """Returns the share of the images in which a pixel with the largest value lies on the square."""
    return np.mean([mask[heat == heat.max()].any() for heat, mask in zip(maps, squares, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["occlusion", "P1", "P2"])
def test_both_methods_find_the_planted_square(maps_and_squares, method):
    """They do in at least 95 % of the images, and in less than 20 % if the same maps are rotated by 180 degrees."""
    maps, squares = maps_and_squares
    assert compute_hit_rate(maps[method], squares) >= 0.95
    assert compute_hit_rate(maps[method][:, ::-1, ::-1], squares) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["P1", "P2"])
def test_grad_cam_and_occlusion_agree(maps_and_squares, stage):
    """The measure is Spearman's rank correlation over the pixels of an image, which is 0 for unrelated maps."""
    from scipy.stats import spearmanr  # takes a second, and the workers of `backends.py` import this file

    maps, _ = maps_and_squares
    ranks = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps[stage], maps["occlusion"], strict=True)]
    assert np.mean(ranks) > 0.5


@pytest.mark.slow
def test_grad_cam_with_a_final_norm_is_right_within_a_cell():
    """The channels of the last map were shifted by a cell of 4 pixels, and the norm mixes them into one score."""
    images, _, corners = draw_patch_images(200, 10_000)
    maps = np.kron(grad_cam(train_model(), images[1::2], np.ones(100, int)), np.ones((1, 4, 4)))
    assert compute_hit_rate(maps, make_masks(corners[1::2], margin=4)) >= 0.95


def compute_lightness(colour):
    """Returns CIE L* of an sRGB colour."""
    share = np.asarray(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_lightness_of_the_colours_rises_evenly():
    steps = np.diff([compute_lightness(colour) for colour in COLOURS])
    assert steps.min() > 0.7 * steps.mean()
    assert steps.max() < 1.3 * steps.mean()


def test_overlay_shows_the_heat_map_and_the_image():
    image = np.full((20, 30, 3), 128, np.uint8)
    heat = np.array([[0.0, 0.0], [0.0, 5.0]])
    out = overlay(image, heat)
    assert (out.dtype, out.shape) == (np.uint8, image.shape)
    values = np.array([compute_lightness(out[place, place]) for place in range(20)])
    assert (np.diff(values) >= -0.5).all()
    assert values[-1] > values[0] + 20
    np.testing.assert_array_equal(overlay(image, np.zeros((3, 3))), overlay(image, -np.ones((1, 1))))
    # The image remains visible below the heat map.
    checks = (
        np.kron(np.indices((4, 4)).sum(axis=0) % 2 * 255, np.ones((5, 5)))[..., None].repeat(3, -1).astype(np.uint8)
    )
    assert overlay(checks, np.ones((1, 1))).astype(int)[:, :, 1].std() > 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grad_cam(make_model(), IMAGES, stage="P9"), "no stage 'P9'; did you mean 'P.'.*Valid: P1, P2"),
        (lambda: grad_cam(make_model(num_classes=0), IMAGES), "no classes"),
        (
            lambda: grad_cam(make_model(), IMAGES[:, :9]),
            r"float32 \(3, 9, 16, 3\); the model takes float32 \(N, 24, 16",
        ),
        (lambda: grad_cam(make_model(), IMAGES.astype(np.uint8)), "images are uint8"),
        (lambda: occlusion(make_model(), [1]), "images are list"),
        (lambda: occlusion(make_model(), IMAGES, [0, 1]), "must be 3 whole numbers, 0 to 3"),
        (lambda: occlusion(make_model(), IMAGES, [[0], [1], [2]]), r"classes=\[\[0\] \[1\] \[2\]\] must be 3 whole"),
        (lambda: occlusion(make_model(), IMAGES, [0, 1, 4]), "must be 3 whole numbers, 0 to 3"),
        (lambda: occlusion(make_model(), IMAGES, [0.5, 1.0, 2.0]), "must be 3 whole numbers, 0 to 3"),
        (lambda: grad_cam(make_model(), IMAGES, ["a", "b", "c"]), "must be 3 whole numbers, 0 to 3"),
        (lambda: occlusion(make_model(), IMAGES, patch=17), "patch=17 must be from 1 to 16"),
        (lambda: occlusion(make_model(), IMAGES, patch=4, stride=5), "stride=5 must be from 1 to patch=4"),
    ],
)
def test_wrong_arguments_raise_one_line_errors(call, message):
    with pytest.raises(ShiftViTError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)

"""The animation of the shift: it draws the model's own arrays, and the committed files are up to date."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import make_shift

# The direction of each group, (down, right); the last does not move.
DIRECTIONS = ((0, -1), (0, 1), (-1, 0), (1, 0), (0, 0))
REST_FRAMES = [frame for frame, (_, progress, _) in enumerate(make_shift.timeline()) if progress == 1]


@pytest.fixture(scope="module")
def picture():
    return np.asarray(Image.open(make_shift.PICTURE))


@pytest.fixture(scope="module")
def states(picture):
    return make_shift.follow(picture)


def shift_maps(maps):
    """Returns maps of shape (H, W, 5), one channel per group, shifted with NumPy."""
    height, width, _ = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[1 - d : 1 - d + height, 1 - r : 1 - r + width, i] for i, (d, r) in enumerate(DIRECTIONS)]
    return np.stack(windows, axis=-1)


def read_cells(frame, group):
    """Returns the colour in the middle of each pixel of a group in a frame, (16, 16, 3)."""
    x, y = make_shift.origin(group)
    middle = (np.arange(16) * make_shift.CELL + make_shift.CELL // 2).astype(int)
    return np.asarray(frame.convert("RGB"))[np.ix_(y + middle, x + middle)]


def assert_frame_shows(frame, state, most):
    expected = np.rint(255 * make_shift.colours(state))
    for group in range(5):
        difference = np.abs(read_cells(frame, group) - expected[:, :, group])
        assert difference[~state.marks[..., group]].max() <= most, group
        assert read_cells(frame, group)[state.marks[..., group]].max() <= 0x28 + most  # ink


def test_states_after_a_shift_are_shifted(states):
    for before, after in ((states[0], states[1]), (states[2], states[3])):
        np.testing.assert_array_equal(after.maps, shift_maps(before.maps))
        np.testing.assert_array_equal(after.zeros, shift_maps(np.ones_like(before.maps)) == 0)
        np.testing.assert_array_equal(after.marks, shift_maps(before.marks))
        np.testing.assert_array_equal(after.span, before.span)  # the same value has the same colour
        assert after.zeros.sum((0, 1)).tolist() == [16, 16, 16, 16, 0]


def test_each_block_spreads_a_pixel_by_one(states):
    rows, columns = np.mgrid[:16, :16]
    distance = np.abs(rows - make_shift.FOLLOWED[0]) + np.abs(columns - make_shift.FOLLOWED[1])
    for state, reach in zip(states, (0, 1, 1, 2, 2), strict=True):
        np.testing.assert_array_equal(state.marks.any(-1), distance <= reach)
    for state, reach in ((states[2], 1), (states[4], 2)):  # an MLP spreads it to all channels
        assert (state.marks == (distance <= reach)[..., None]).all()


def test_model_spreads_a_change_to_the_marked_pixels(picture, states):
    """Changing the four input pixels of one map pixel changes exactly the pixels that the figure marks."""
    import keras

    from shiftvit import Bundle

    bundle = Bundle.load("cifar10")
    backbone = bundle.build().backbone
    row, column = make_shift.FOLLOWED
    changed = picture.copy()
    changed[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] ^= 255
    x = backbone.get_layer("patch_embed")(bundle.prepare(np.stack([picture, changed])))
    for number, state in ((1, states[2]), (2, states[4])):
        x = backbone.get_layer(f"stage1_block{number}")(x)
        plain, other = keras.ops.convert_to_numpy(x)
        np.testing.assert_array_equal((plain != other).any(-1), state.marks.any(-1))


@pytest.mark.slow
@pytest.mark.parametrize("theme", [make_shift.LIGHT, make_shift.DARK], ids=["light", "dark"])
def test_rest_frames_show_the_states(states, picture, theme):
    for step in range(5):
        assert_frame_shows(make_shift.draw(states, picture, step, 1.0, theme), states[step], 1)


def test_halfway_frame_is_shifted_by_half_a_pixel(states, picture):
    half = make_shift.draw(states, picture, 1, 0.5, make_shift.LIGHT)
    colours = make_shift.colours(states[0])
    # Left of its middle, a pixel of the first group shows its own colour; right of it, that of its neighbour.
    x, y = make_shift.origin(0)
    middle = np.arange(1, 8) * make_shift.CELL + make_shift.CELL // 2
    for aside, neighbour in ((-4, 0), (4, 1)):
        drawn = np.asarray(half)[np.ix_(y + middle, x + middle + aside)]
        expected = np.rint(255 * colours[1:8, 1 + neighbour : 8 + neighbour, 0])
        assert np.abs(drawn - expected).max() <= 1
    assert make_shift.ease(0) == 0
    assert make_shift.ease(0.5) == 0.5
    assert make_shift.ease(1) == 1


@pytest.mark.parametrize("name", ["shift", "shift_dark"])
def test_committed_figures_are_current(states, name):
    path = make_shift.FIGURES / f"{name}.webp"
    assert path.stat().st_size < 1_000_000
    frames = make_shift.timeline()
    with Image.open(path) as film:
        assert (film.n_frames, film.info["loop"]) == (len(frames), 0)
        assert film.size == (make_shift.WIDTH, make_shift.HEIGHT)
        for frame, state in zip(REST_FRAMES, states, strict=True):
            film.seek(frame)
            film.load()
            assert film.info["duration"] == frames[frame][2]
            assert_frame_shows(film, state, 24)  # WebP is lossy
    still = Image.open(make_shift.FIGURES / f"{name}.png")
    assert_frame_shows(still, states[1], 1)


def test_readme_has_figures_for_each_theme_and_for_reduced_motion():
    text = (make_shift.FIGURES.parents[1] / "README.md").read_text("utf-8")
    for name in ("shift.webp", "shift_dark.webp", "shift.png", "shift_dark.png"):
        assert f'"docs/figures/{name}"' in text
    assert "(prefers-reduced-motion: reduce)" in text
    assert "(prefers-color-scheme: dark)" in text


@pytest.mark.slow
def test_script_writes_the_figures(states, tmp_path, monkeypatch):
    monkeypatch.setattr(make_shift, "FIGURES", tmp_path)
    monkeypatch.setattr(make_shift, "SLIDE", 2)
    monkeypatch.setattr(make_shift, "MIX", 2)
    save = Image.Image.save  # the smallest files take many seconds
    monkeypatch.setattr(Image.Image, "save", lambda *given, **named: save(*given, **named | {"method": 0}))
    make_shift.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "shift.png",
        "shift.webp",
        "shift_dark.png",
        "shift_dark.webp",
    ]
    with Image.open(tmp_path / "shift.webp") as film:
        assert film.n_frames == 9
        assert_frame_shows(film, states[0], 24)

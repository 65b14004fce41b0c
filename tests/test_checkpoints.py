"""Checkpoints of the authors' code become bundles, whatever their layout, or are refused with a one-line error."""

from __future__ import annotations

import argparse
import json
import pathlib
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import official
from attack import Attack
from official import Weights, make_checkpoint, to_tensors
from parity import GOLDEN
from shiftvit import Bundle, Predictor, ShiftViTError
from shiftvit.bundle.official import _read_labels
from shiftvit.cli.main import main
from shiftvit.exports.export import pack
from shiftvit.presets import PRESETS, Preset
from tensors import to_numpy

torch = pytest.importorskip("torch")

PRESET = "shiftvit_pocket"
ARGUMENTS = {"image_shape": (32, 32, 3), "embed_dim": 24, "depths": (1, 2), "mlp_ratio": 2.0, "drop_path": 0.1}


@pytest.fixture(autouse=True)
def small_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PRESETS, PRESET, Preset(ARGUMENTS, None, "for tests"))
    monkeypatch.chdir(tmp_path)


def make_weights(classes: int = 3, seed: int = 0) -> Weights:
    return official.make_state_dict(PRESET, classes, seed)


def add_module_prefix(state: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{name}": value for name, value in state.items()}


def convert_to_defaultdict(state: dict[str, Any]) -> defaultdict[str, Any]:
    found: defaultdict[str, Any] = defaultdict(list)
    found.update(state)
    return found


# Each makes the object that is saved from a state dict of tensors.
LAYOUTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda state: state,
    "ordered": lambda state: OrderedDict(state),
    "default dict": convert_to_defaultdict,
    "parameters": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
    "model": lambda state: {"model": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "arch": "shift_vit"},
    "module.": add_module_prefix,
    "model with module.": lambda state: {"model": add_module_prefix(state)},
    "training": lambda state: make_checkpoint({name: value.numpy() for name, value in state.items()}),
    "training with more": lambda state: {
        "model": state,
        "args": argparse.Namespace(path=Path("a"), pure=pathlib.PureWindowsPath("b"), names=frozenset("ab")),
        "best": np.float64(81.5),
        "count": np.int64(3),
        "curve": np.arange(4.0),
        "version": torch.__version__,
        "device": torch.device("cpu"),
        "logs": defaultdict(list, {"top1": [1.0]}),
    },
    "non-contiguous": lambda state: {
        name: value.T.contiguous().T if value.ndim == 2 else value for name, value in state.items()
    },
    "double": lambda state: {name: value.double() for name, value in state.items()},
}


def pack_and_check(path: Path, expected: Weights, **options: Any) -> Bundle:
    bundle = Bundle.load(pack(path, "packed", **options))
    found = bundle.weights["stage2_block2/mlp/fc2/kernel"]
    np.testing.assert_array_equal(found, expected["layers.1.blocks.1.mlp.fc2.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(bundle.weights["head/bias"], expected["head.bias"])
    assert sum(value.size for value in bundle.weights.values()) == sum(value.size for value in expected.values())
    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(tmp_path: Path, layout: str, legacy: bool) -> None:
    content = LAYOUTS[layout](to_tensors(make_weights()))
    torch.save(content, "weights.pth", _use_new_zipfile_serialization=not legacy)
    bundle = pack_and_check(Path("weights.pth"), make_weights(), preset=PRESET)
    assert bundle.provenance is not None
    assert (bundle.provenance.address, bundle.provenance.license) == ("weights.pth", None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["packed", "weights.pth"]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(kind: str) -> None:
    narrow = {name: value.to(getattr(torch, kind)) for name, value in to_tensors(make_weights()).items()}
    torch.save({"model": narrow}, "weights.pth")
    pack_and_check(Path("weights.pth"), {name: value.float().numpy() for name, value in narrow.items()}, preset=PRESET)


def test_ema_option_takes_the_moving_average() -> None:
    torch.save(make_checkpoint(make_weights(), ema=make_weights(seed=1)), "weights.pth")
    pack_and_check(Path("weights.pth"), make_weights(), preset=PRESET)
    pack_and_check(Path("weights.pth"), make_weights(seed=1), preset=PRESET, ema=True)
    torch.save(
        {
            "state_dict": to_tensors(make_weights()),
            "state_dict_ema": add_module_prefix(to_tensors(make_weights(seed=2))),
        },
        "timm.pth",
    )
    pack_and_check(Path("timm.pth"), make_weights(seed=2), ema=True)
    for content in (make_checkpoint(make_weights()), to_tensors(make_weights())):
        torch.save(content, "weights.pth")
        assert_refused("has no moving average of the weights .*; leave out --ema", ema=True)


def assert_refused(match: str, path: str = "weights.pth", **options: Any) -> str:
    """Asserts that packing fails with one line, without escape sequences or advice to run code, and writes nothing."""
    before = sorted(Path().iterdir())
    with pytest.raises(ShiftViTError, match=match) as caught:
        pack(path, "refused", **options)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 1500
    assert not any(word in text for word in ("weights_only", "safe_globals", "pickle"))
    assert sorted(Path().iterdir()) == before
    return text


def test_preset_is_recognised_and_a_wrong_one_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(to_tensors(make_weights()), "weights.pth")
    pack_and_check(Path("weights.pth"), make_weights())
    assert f"weights.pth is a {PRESET}" in capsys.readouterr().err
    assert_refused(f"do not fit this model, .* faults; they are those of {PRESET}: ", preset="shiftvit_cifar_tiny")
    assert_refused("there is no preset 'shiftvit_poket'; did you mean 'shiftvit_pocket'", preset="shiftvit_poket")
    other = to_tensors(make_weights())
    del other["layers.1.blocks.1.mlp.fc1.weight"]
    torch.save(other, "weights.pth")
    assert_refused("fits none of the paper's models; name its architecture with --preset")
    assert_refused("1 faults; build it with .*: layers.1.blocks.1.mlp.fc1.weight: missing", preset=PRESET)
    torch.save({"\x1b[31mred\x07": torch.zeros(3)}, "weights.pth")
    assert_refused("fits none of the paper's models")
    assert_refused(r"\[31mred: surplus", preset=PRESET)


def test_labels_of_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(to_tensors(make_weights()), "weights.pth")
    assert pack_and_check(Path("weights.pth"), make_weights()).labels == ("class 0", "class 1", "class 2")
    assert (
        "weights.pth has no names for its 3 classes, so they are numbered; to name them, use --labels FILE"
        in capsys.readouterr().err
    )
    Path("names.txt").write_bytes("\ufeffcat\r\n größter Hund \r\n\r\nship\r\n".encode())
    assert pack_and_check(Path("weights.pth"), make_weights(), labels="names.txt").labels == (
        "cat",
        "größter Hund",
        "ship",
    )
    torch.save(to_tensors(make_weights(1000)), "thousand.pth")
    bundle = pack_and_check(Path("thousand.pth"), make_weights(1000))
    assert (bundle.labels[1], bundle.synsets[1]) == ("goldfish", "n01443537")
    torch.save(to_tensors(make_weights(0)), "headless.pth")
    assert Bundle.load(pack("headless.pth", "headless")).labels == ()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"cat\ndog\n", "'names.txt': 2 labels do not name 3 classes; give one for each"),
        (b"cat\ndog\ncat\n", "'names.txt': the label 'cat' names 2 classes; give each class its own name"),
        (b"cat\n\x1b[31mdog\nship\n", r"has the class name '\\x1b\[31mdog', which cannot be printed"),
        (b"cat\n\xff\nship\n", "is not UTF-8 text"),
        (b"x" * 2**21, "is too large for class names"),
    ],
)
def test_invalid_label_files_are_refused(content: bytes, match: str) -> None:
    torch.save(to_tensors(make_weights()), "weights.pth")
    Path("names.txt").write_bytes(content)
    assert_refused(match, labels="names.txt")
    assert_refused("the labels 'absent.txt' cannot be read: No such file", labels="absent.txt")


def test_class_names_of_every_script_are_read() -> None:
    """Joiners and other spaces are not printable in Python's sense."""
    names = "\u0645\u06cc\u200c\u0628\u06cc\u0646", "\U0001f469\u200d\U0001f4bb", "guinea\xa0pig"
    Path("names.txt").write_text("\n".join(names), "utf-8")
    assert _read_labels(Path("names.txt"), 3) == names


class Settings:
    """A class that only the code that saved it has."""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda: Attack(Path("mark")), "could run code; save model.state_dict"),
        (lambda: Settings(), "it holds test_checkpoints.Settings, which is not plain data"),
        (lambda: breakpoint, "it holds breakpoint, which is not plain data"),
        (lambda: torch.nn.Linear(2, 2), "it holds torch.nn.modules.linear.Linear, which is not plain data"),
    ],
)
def test_objects_are_refused_and_not_run(legacy: bool, content: Callable[[], Any], match: str) -> None:
    torch.save(
        make_checkpoint(make_weights(), more=content()), "weights.pth", _use_new_zipfile_serialization=not legacy
    )
    assert_refused(match, preset=PRESET)
    assert not Path("mark").exists()


def test_non_finite_and_complex_weights_are_refused() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        broken = make_weights()
        broken["layers.0.blocks.0.mlp.fc1.bias"][5] = bad
        torch.save(make_checkpoint(broken), "weights.pth")
        assert_refused(
            "the weights are damaged, get them again: layers.0.blocks.0.mlp.fc1.bias: not all of its values are finite"
        )
    huge = {name: value.double() for name, value in to_tensors(make_weights()).items()}
    huge["head.bias"][0] = 1e300  # beyond float32
    torch.save(huge, "weights.pth")
    assert_refused("head.bias: not all of its values are finite")
    # Each value is finite and their product is not.
    torch.save({name: value * 1e30 for name, value in to_tensors(make_weights()).items()}, "weights.pth")
    assert_refused("returns values that are not finite")
    torch.save(to_tensors(make_weights()) | {"head.bias": torch.zeros(3, dtype=torch.complex64)}, "weights.pth")
    assert_refused("head.bias: complex64, not real numbers")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_files_that_are_not_checkpoints_are_refused() -> None:
    torch.save(to_tensors(make_weights()), "whole.pth")
    whole = Path("whole.pth").read_bytes()
    contents = {
        whole[: len(whole) // 2]: "cannot read weights from 'weights.pth'.*is it complete",
        whole[:10]: "cannot read weights from 'weights.pth'",
        b"": "cannot read weights from 'weights.pth'",
        b"<!DOCTYPE html><html>": "'weights.pth' is a web page and holds no weights; download it again",
        b"version https://git-lfs": "cannot read weights from 'weights.pth'",
        b"\x80\x02]q\x00.": "cannot read weights from 'weights.pth'",
    }
    for content, match in contents.items():
        Path("weights.pth").write_bytes(content)
        assert_refused(match)
    for content in ([1, 2], {}, {"epoch": 3}, {"model": {}}, torch.zeros(3), {"model": {"head.weight": "text"}}):
        torch.save(content, "weights.pth")
        assert_refused("holds no state dict")
    torch.jit.script(torch.nn.Linear(2, 2)).save("weights.pth")
    assert_refused("'weights.pth' is a TorchScript program; save model.state_dict")
    assert_refused("there is no file 'absent.pth'", "absent.pth")
    with pytest.raises(ShiftViTError, match=r"is not a bundle; make one: shiftvit pack whole.pth DIR"):
        Predictor.from_pretrained("whole.pth")
    assert_refused(
        "--preset is only for checkpoints of the authors' code, and 'cifar10' is not one", "cifar10", preset=PRESET
    )


def test_decompression_bombs_are_refused() -> None:
    torch.save(to_tensors(make_weights()), "whole.pth")
    with zipfile.ZipFile("whole.pth") as whole, zipfile.ZipFile("weights.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
        packed.writestr("whole/data/999", bytes(2**26))
    assert_refused("would unpack to .* bytes from .*, too many for a model")
    # An expanded view of one number: the shape is huge, and the file small.
    torch.save(to_tensors(make_weights()) | {"head.bias": torch.zeros(1).expand(2**40)}, "weights.pth")
    assert_refused("would unpack to .* bytes from .*, too many for a model")


def test_command_line_prints_a_one_line_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(make_checkpoint(make_weights(), more=Settings()), "weights\x1b[31m.pth")
    monkeypatch.setattr("sys.argv", ["shiftvit", "pack", "weights\x1b[31m.pth", "out", "--preset", PRESET])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "\x1b" not in output.err
    assert not Path("out").exists()


def test_packed_checkpoint_reproduces_the_official_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(GOLDEN / "official_gn1.npz") as archive:
        arrays = dict(archive)
    config = json.loads(str(arrays["config"]))
    arguments = {
        "image_shape": (64, 64, 3),
        "embed_dim": config["embed_dim"],
        "depths": tuple(config["depths"]),
        "mlp_ratio": config["mlp_ratio"],
        "num_div": config["n_div"],
    }
    monkeypatch.setitem(PRESETS, PRESET, Preset(arguments, None, "for tests"))
    torch.save({"model": to_tensors({key[2:]: arrays[key] for key in arrays if key.startswith("w/")})}, "weights.pth")
    model = Bundle.load(pack("weights.pth", "packed")).build()
    np.testing.assert_allclose(to_numpy(model(arrays["x_nhwc"])), arrays["logits"], atol=2e-4)

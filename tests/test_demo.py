"""The demo, whose model runs in the browser: served by a static host, in a real Chromium."""

import contextlib
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import image_matrix as matrix
from browser import open_browser
from shiftvit import Predictor, Preprocess, ShiftViTError, files
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.data.decode.images import decode
from shiftvit.serve import demo
from shiftvit.serve.demo import _RUNTIME_FILES, write_demo
from static_host import host_folder, make_demo_once

SAMPLES = sorted((PRETRAINED / "samples").glob("*/*.png"))
# The demo's path on the host. A site need not have it at its root.
HOST_PATH = "/shiftvit/try"
# Classifies and explains a picture with the functions of the page's own api.js.
CLASSIFY_SCRIPT = """
const [address, done] = arguments;
(async () => {
  const api = await import(new URL('page/api.js', document.baseURI));
  const [model] = await api.listModels();
  const picture = await (await fetch(address)).blob();
  return {classes: await api.classify(model, picture), explained: await api.explain(model, picture, 'cat')};
})().then(done, (error) => done({error: error.message}));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo")
    return shutil.copytree(make_demo_once(place), place / "demo")


@pytest.fixture(scope="module")
def address(folder):
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)) for _ in range(3)]
    for index, (image, size) in enumerate(zip(coarse, ((640, 427), (300, 451), (90, 33)), strict=True)):
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"photo{index}.jpg", quality=92)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(folder / "photo1.jpg").save(folder / "photo3.jpg", exif=turned)
    coarse[0].resize((70, 50)).convert("L").save(folder / "photo4.png")
    coarse[1].resize((60, 1100), Image.Resampling.BICUBIC).save(folder / "photo5.png")  # read in three strips
    with host_folder(folder, HOST_PATH) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with open_browser() as found:
        yield found


@pytest.mark.slow
def test_demo_agrees_with_the_predictor_and_contacts_no_other_host(address, folder, chromium):
    predictor = Predictor.from_pretrained("cifar10", runtime="onnxruntime", threads=1)
    chromium.requests()
    chromium.open(address)
    chromium.driver.set_script_timeout(60)
    names = json.loads((folder / "samples" / "list.json").read_text())
    assert len(names) == len(SAMPLES)
    for name in [*names, *(path.name for path in sorted(folder.glob("photo*")))]:
        found = chromium.driver.execute_async_script(CLASSIFY_SCRIPT, f"{address}/{name}")
        assert "error" not in found, (name, found)
        # The predictor is given decoded pixels, since it decodes a large JPEG at a reduced size.
        (expected,) = predictor([decode(folder / name)], top_k=10)
        scores = dict(expected.top)
        assert found["classes"][0]["label"] == expected.label, name
        for row in found["classes"]:
            assert row["score"] == pytest.approx(scores[row["label"]], abs=2e-3), (name, row)
        assert found["explained"]["heatmap"].startswith("data:image/png;base64,")
    assert not {url for url in chromium.requests() if not url.startswith((address + "/", "blob:", "data:"))} - {address}


@pytest.mark.slow
@pytest.mark.parametrize("srgb", [True, False])
def test_demo_converts_colours_if_the_model_does(address, folder, chromium, srgb):
    picture = matrix.encode(matrix.load_picture(), "PNG", icc_profile=matrix.make_icc(matrix.ADOBE_RGB))
    (folder / "wide.png").write_bytes(picture)
    predictor = Predictor.from_pretrained("cifar10", runtime="onnxruntime", threads=1)
    converted, stored = (dict(row.top) for row in predictor([decode(picture, srgb=s) for s in (True, False)], top_k=10))
    assert max(abs(converted[label] - stored[label]) for label in stored) > 0.01
    chromium.open(address)
    script = CLASSIFY_SCRIPT.replace("const picture", f"model.preprocess.srgb = {str(srgb).lower()}; const picture")
    found = chromium.driver.execute_async_script(script, f"{address}/wide.png")
    for row in found["classes"]:
        assert row["score"] == pytest.approx((converted if srgb else stored)[row["label"]], abs=0.004)


@pytest.mark.slow
def test_page_shows_the_answer_and_the_heat_map(address, folder, chromium):
    chromium.console()
    chromium.open(address)
    chromium.wait(lambda: chromium.texts("#name") == ["cifar10"])
    assert "They stay on this device" in chromium.texts(".promise")[0]
    # Each sample has its class as its title.
    samples = chromium.wait(lambda: chromium.all(".samples button"))
    assert [button.get_attribute("title") for button in samples] == [path.parent.name for path in SAMPLES]
    chromium.driver.find_element("id", "files").send_keys(str(folder / "samples" / "cat" / "test_00000.png"))
    chromium.wait(lambda: chromium.texts(".result h3 bdi") == ["cat"])
    assert re.fullmatch(r"[\d,]+ ms", chromium.texts(".result .time")[0])
    chromium.driver.find_element("xpath", "//button[contains(., 'Heat map')]").click()
    chromium.wait(lambda: chromium.driver.execute_script("return document.querySelector('.heat').naturalWidth > 0"))
    assert "1 picture added" in chromium.run("return document.getElementById('said').textContent")
    # Once the page has started, its complaints appear at once.
    chromium.run("document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer()}))")
    assert chromium.run("return getComputedStyle(document.getElementById('trouble')).visibility") == "visible"
    assert not chromium.console()


@pytest.mark.slow
def test_page_reports_a_broken_picture(address, folder, chromium):
    (folder / "broken.png").write_bytes(b"no picture")
    chromium.open(address)
    assert (
        "cannot read the file"
        in chromium.driver.execute_async_script(CLASSIFY_SCRIPT, f"{address}/broken.png")["error"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (40_000, 1)])
def test_picture_with_too_many_pixels_is_refused_and_freed(address, chromium, width, height):
    chromium.open(address)
    chromium.run(
        "window.freed = 0; const [width, height] = arguments;"
        "window.createImageBitmap = async () => ({width, height, close: () => window.freed++})",
        width,
        height,
    )
    found = chromium.driver.execute_async_script(CLASSIFY_SCRIPT, f"{address}/photo4.png")
    assert f"has {width} × {height} pixels, which is too many" in found["error"]
    assert chromium.run("return window.freed") == 1


@contextlib.contextmanager
def disable_simd(chromium):
    """Makes WebAssembly in the pages that are opened meanwhile appear to lack SIMD."""
    script = "WebAssembly.validate = () => false"
    added = chromium.tell("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        yield
    finally:
        chromium.tell("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])


@pytest.mark.slow
def test_page_reports_a_browser_without_simd(address, chromium):
    with disable_simd(chromium):
        chromium.open(address)
        chromium.wait(lambda: "needs WebAssembly with SIMD" in " ".join(chromium.texts("#trouble")))
    chromium.open(address)
    chromium.wait(lambda: chromium.texts("#name") == ["cifar10"])
    assert not chromium.all("#trouble")


@pytest.mark.slow
def test_page_reports_missing_or_damaged_files(folder, chromium, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    faults = [
        ("model/model.onnx", lambda _: b"damaged", "The model cannot be loaded"),
        ("model/model.onnx", None, "model/model.onnx is missing (status 404)"),
        ("model/model.json", lambda _: b"<!doctype html>", "model/model.json is damaged"),
        ("model/head.bin", lambda content: content[:-4], "model/head.bin is damaged"),
        ("runtime/ort.wasm.min.js", None, "The model cannot be loaded"),
        ("runtime/ort-wasm-simd-threaded.js", None, "The model cannot be loaded"),
        ("runtime/ort-wasm-simd-threaded.wasm", lambda content: content[:9999], "The model cannot be loaded"),
        ("samples/list.json", None, "samples/list.json is missing"),
        ("page/main.js", lambda content: content[:-9], "The page has not started"),
    ]
    with host_folder(copy, HOST_PATH) as address:
        for name, change, message in faults:
            content = (copy / name).read_bytes()
            (copy / name).unlink()
            if change is not None:
                (copy / name).write_bytes(change(content))
            chromium.tell("Network.clearBrowserCache")
            chromium.open(address)
            chromium.wait(lambda message=message: message in " ".join(chromium.texts("#trouble")), 20)
            (copy / name).write_bytes(content)


@pytest.mark.slow
def test_heat_map_covers_the_region_that_preprocessing_keeps(address, chromium):
    rules = [
        Preprocess(),
        Preprocess(resize=32, crop=32, crop_position="center"),
        Preprocess(resize=40, crop=(24, 20)),
        Preprocess(resize=24, crop=(24, 40), crop_position="center"),
        Preprocess(resize=(48, 64), crop=(33, 41), crop_position="center"),
        Preprocess(resize=256, crop=224, crop_position="center"),
    ]
    sizes = [(640, 427), (300, 451), (33, 90), (48, 48)]
    module = (demo._BROWSER / "api.js").read_text("utf-8")
    functions = module[module.index("function seen") : module.index("/** Draws a heat map")]
    chromium.open(address)
    for rule in rules:
        for height, width in sizes:
            found = chromium.run(f"{functions}; return seen(...arguments)", rule.model_dump(mode="json"), height, width)
            resized, seen = rule.resized_shape(height, width), rule.output_shape(height, width)
            top, left = rule.crop_origin(*resized)
            expected = [left / resized[1], top / resized[0], seen[1] / resized[1], seen[0] / resized[0]]
            assert found["region"] == pytest.approx(expected), (rule, height, width)
            assert found["ratio"] == pytest.approx(seen[1] / seen[0])


@pytest.mark.slow
def test_demo_is_replaced_and_has_a_card_for_spaces(folder, tmp_path, monkeypatch):
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "\nsdk: static\n" in card
    before = (folder / "model" / "model.json").read_text()
    (folder / "notes.txt").write_text("mine")
    # Exporting the same graph again would only take time.
    exported = tmp_path / "graph"
    exported.mkdir()
    shutil.copyfile(folder / "model" / "model.onnx", exported / "model.onnx")
    monkeypatch.setattr(demo, "export", lambda *_, **__: exported)
    assert write_demo("cifar10", folder) == folder
    assert (folder / "model" / "model.json").read_text() == before
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "README.md").exists()  # the card is for Spaces, which this call does not ask for


def test_demo_of_a_run_has_the_name_of_the_run(tmp_path, monkeypatch):
    shutil.copytree(PRETRAINED / "cifar10", tmp_path / "pets" / "bundle")
    monkeypatch.chdir(tmp_path / "pets")
    # Neither the graph nor the runtime has the name.
    monkeypatch.setattr(demo, "export", lambda *_, **__: PRETRAINED / "cifar10")
    monkeypatch.setattr(demo, "_copy_runtime", lambda place, _: place.mkdir())
    for model in ("bundle", "."):
        about = json.loads((write_demo(model, tmp_path / "out") / "model" / "model.json").read_text())
        assert about["name"] == "pets"


def test_folder_that_is_not_a_demo_is_not_changed(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ShiftViTError, match="is not a demo"):
        write_demo("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_runtime_with_another_hash_is_refused(tmp_path, monkeypatch):
    import io
    import tarfile

    monkeypatch.setattr(files, "find_cache_folder", lambda name: tmp_path / "cache" / name)
    package = tmp_path / "package.tgz"
    package.write_bytes(b"no archive")
    with pytest.raises(ShiftViTError, match="is not the npm package"):
        demo._copy_runtime(tmp_path / "runtime", package)
    with tarfile.open(package, "w:gz") as archive:
        for name in _RUNTIME_FILES:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises(ShiftViTError, match="SHA-256 differs"):
        demo._copy_runtime(tmp_path / "runtime", package)
    assert not (tmp_path / "runtime").exists()
    assert not (tmp_path / "cache").exists()

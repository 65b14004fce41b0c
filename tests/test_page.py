"""The page of the server in a real browser: what it shows, and that it contacts no other host."""

import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image

import shiftvit.serve
from browser import open_browser
from serving import run_server
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.exports.any_size import remove_size
from shiftvit.inference.runtimes import load_graph
from shiftvit.serve.guard import Access

PAGE = Path(shiftvit.serve.__file__).parent / "page"
SAMPLES = PRETRAINED / "samples"
CAT, SHIP = SAMPLES / "cat" / "test_00000.png", SAMPLES / "ship" / "test_00001.png"

slow = pytest.mark.slow


def test_page_files_contact_no_other_host_and_insert_no_html():
    files = [path for path in PAGE.iterdir() if path.suffix in {".html", ".css", ".js", ".svg"}]
    assert len(files) == len([*PAGE.iterdir()]) > 5
    for path in files:
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""["'(](https?:)?//\w|@import|url\(""", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", text), path.name
        assert len(text.splitlines()) < 400


def test_page_files_need_no_browser_of_this_year():
    """A lookbehind stops the whole page in Safari before 16.4; the others are missing there or in Firefox 115."""
    for path in (*PAGE.glob("*.js"), PAGE.parent / "browser" / "api.js"):
        text = path.read_text("utf-8").replace("no AbortSignal.any", "")
        assert not re.search(r"\(\?<[=!]|AbortSignal\.(any|timeout)|OffscreenCanvas", text), path.name


@pytest.fixture(scope="module")
def server():
    with run_server() as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with open_browser() as found:
        yield found


@pytest.fixture
def page(server, chromium):
    """The page, freshly opened. The test fails if the page contacted another host or logged an error."""
    chromium.console(), chromium.requests()
    chromium.open(server.url)
    chromium.wait(lambda: chromium.texts("#name") == ["cifar10"])
    yield chromium
    hosts = {url for url in chromium.requests() if not url.startswith((server.url, "blob:", "data:image/png"))}
    assert not hosts
    # The browser logs failed requests itself.
    assert not [line for line in chromium.console() if "Failed to load resource" not in line]


def read_results(page):
    """Returns the file and the class of each result, from the top."""
    cards = page.all(".result")
    found = [
        (card.find_element("css selector", ".file").text, card.find_elements("css selector", "h3 bdi"))
        for card in cards
    ]
    return [(name, label[0].text if label else None) for name, label in found]


def choose_files(page, *paths):
    page.driver.find_element("id", "files").send_keys("\n".join(map(str, paths)))


@slow
def test_dropped_pictures_are_classified(page, server):
    assert page.drop(CAT, SHIP)
    page.wait(lambda: read_results(page) == [(CAT.name, "cat"), (SHIP.name, "ship")])
    _, expected = server.post("/v1/classify?top_k=5", CAT.read_bytes())
    bars = page.all(".result:first-child .bar")
    assert [bar.text.split("\n") for bar in bars] == [[row["label"], f"{100 * row['score']:.1f}%"] for row in expected]
    widths = [page.run("return arguments[0].querySelector('.fill').getBoundingClientRect()", bar) for bar in bars]
    track = page.run("return arguments[0].querySelector('.track').getBoundingClientRect()", bars[0])
    assert widths[0]["right"] - track["left"] == pytest.approx(expected[0]["score"] * track["width"], abs=1)
    assert re.search(r"\d ms$", page.texts(".result .time")[0])
    assert page.texts("#count") == ["2 pictures"]
    assert "test_00000.png: cat, " in page.run("return document.getElementById('said').textContent")
    assert not page.all(".over")
    page.drop(CAT)  # a second time, onto the results
    page.wait(lambda: len(read_results(page)) == 3)
    page.find(".remove").click()
    assert page.texts("#count") == ["2 pictures"]
    page.find("#clear").click()
    assert not page.all(".result")
    assert page.texts("#headline") == ["Drop a picture."]


@slow
def test_heat_map_covers_the_region_that_the_model_sees(page, server, monkeypatch):
    crop = server.model.explain

    async def explain(*arguments):  # as for a model that crops: the left half without a quarter above and below
        return {**await crop(*arguments), "region": [0, 0.25, 0.5, 0.5]}

    choose_files(page, CAT)
    page.find(".open").click()
    heat = page.find(".heat")
    whole = page.find(".photo").rect
    assert heat.rect == pytest.approx(whole, abs=1)
    assert page.texts(".legend") == ["The coloured parts support cat."]
    page.run("const s = document.querySelector('.strength input'); s.value = 20; s.dispatchEvent(new Event('input'))")
    page.wait(lambda: heat.value_of_css_property("opacity") == "0.2")
    monkeypatch.setattr(server.model, "explain", explain)
    before = heat.get_attribute("src")
    page.all(".bar")[2].click()  # another class
    page.wait(lambda: page.all(".heat")[0].get_attribute("src") != before)
    page.wait(lambda: "does not see" in page.texts(".legend")[0])
    place = page.find(".heat").rect
    assert (place["x"], place["y"]) == pytest.approx((whole["x"], whole["y"] + whole["height"] / 4), abs=1)
    assert (place["width"], place["height"]) == pytest.approx((whole["width"] / 2, whole["height"] / 2), abs=1)
    pressed = [bar.get_attribute("aria-pressed") for bar in page.all(".bar")]
    assert pressed == ["false", "false", "true", "false", "false"]
    page.find(".open").click()
    page.wait(lambda: not page.all(".heat"))
    assert not page.all(".strength")


@slow
def test_heat_map_that_was_switched_off_does_not_appear(page):
    page.run(
        "const real = HTMLImageElement.prototype.decode;"
        "HTMLImageElement.prototype.decode = async function () {"
        "  await real.call(this);"
        "  if (this.className === 'heat') await new Promise((go) => (window.release = go)); }"
    )
    choose_files(page, CAT)
    page.find(".open").click()
    page.wait(lambda: page.run("return !!window.release"))
    page.find(".open").click()
    page.run("window.release(); window.release = null; return new Promise((done) => setTimeout(done))")
    assert not page.all(".heat")
    assert "support" not in " ".join(page.texts(".legend"))
    page.find(".open").click()
    page.wait(lambda: page.run("return !!window.release"))
    page.run("window.release()")
    page.wait(lambda: page.all(".heat") and page.texts(".legend") == ["The coloured parts support cat."])


@slow
def test_page_works_with_the_keyboard_alone(page):
    from selenium.webdriver.common.keys import Keys

    def describe_focus():
        return page.run(
            "const a = document.activeElement; return a.id || a.getAttribute('aria-label') || a.textContent.trim()"
        )

    def tab_to(name, most=40):
        for _ in range(most):
            page.press(Keys.TAB)
            if describe_focus() == name:
                return
        raise AssertionError(f"Tab does not come to {name!r}")

    page.wait(lambda: page.all("#samples"))
    page.press(Keys.TAB)
    assert describe_focus() == "Skip to the results"
    tab_to("card")
    page.press(Keys.ENTER)
    page.wait(lambda: "ShiftViT for CIFAR-10" in page.texts("dialog h3"))
    assert describe_focus() == "Close"
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.all("dialog"))
    assert describe_focus() == "card"  # the focus returns
    tab_to("files")
    outline = page.run("return getComputedStyle(document.querySelector('label[for=files]')).outlineStyle")
    assert outline == "solid"  # the focus is visible
    tab_to("camera")
    page.press(Keys.ENTER)
    page.wait(lambda: page.all("dialog .main:enabled"))
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.all("dialog"))
    assert describe_focus() == "camera"
    tab_to("paste")
    page.press(Keys.TAB, Keys.ENTER)  # the first sample
    page.wait(lambda: read_results(page) == [("sample: airplane", "airplane")])
    tab_to("Remove sample: airplane")
    tab_to("Heat map")
    page.press(Keys.SPACE)
    page.wait(lambda: page.all(".heat"))
    page.press(Keys.TAB)
    assert page.run("return document.activeElement.type") == "range"
    page.press(*[Keys.ARROW_LEFT] * 10)
    page.wait(lambda: page.run("return document.activeElement.value") == "50")
    page.wait(lambda: page.all(".heat")[0].value_of_css_property("opacity") == "0.5")


@slow
def test_unusable_files_show_their_own_faults(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(20 * 2**20 + 1)
    (tmp_path / "folder").mkdir()
    page.requests()
    page.drop(*[tmp_path / name for name in ("notes.png", "empty.png", "huge.png", "folder")], CAT)
    page.wait(lambda: len(page.texts(".result .wrong")) == 4 and read_results(page)[-1] == (CAT.name, "cat"))
    notes, empty, huge, folder = page.texts(".result .wrong")
    assert "not an image of a supported format" in notes
    assert empty == "The file is empty."
    assert huge == "The file is larger than the 20 MB that the server takes. Choose a smaller picture."
    assert "may be a folder" in folder
    # The page sends only notes.png and the cat.
    assert len([url for url in page.requests() if "classify" in url]) == 2


@slow
def test_rotated_pictures_and_pictures_without_preview(page, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(CAT).resize((90, 60)).save(tmp_path / "turned.jpg", exif=turned)
    Image.open(CAT).save(tmp_path / "scan.tiff")
    choose_files(page, tmp_path / "turned.jpg", tmp_path / "scan.tiff")
    page.wait(lambda: all(label for _, label in read_results(page)))
    (photo,) = page.all(".photo")
    assert (photo.get_property("naturalWidth"), photo.get_property("naturalHeight")) == (60, 90)
    assert photo.rect["width"] / photo.rect["height"] == pytest.approx(2 / 3, abs=0.02)
    assert page.texts(".blank") == ["No preview"]
    assert "This browser cannot show pictures of this format." in page.texts(".legend")
    assert len(page.all(".open")) == 1  # without a preview there is no heat map


@slow
def test_pasted_and_camera_pictures_are_classified(page, server):
    page.tell(
        "Browser.grantPermissions", origin=server.url, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    copied = page.driver.execute_async_script(
        "const [done] = arguments;"
        "fetch('/samples/ship/test_00001.png').then((answer) => answer.blob())"
        ".then((blob) => navigator.clipboard.write([new ClipboardItem({'image/png': blob})]))"
        ".then(() => done('copied'), (error) => done(String(error)))"
    )
    assert copied == "copied"
    key = {"key": "v", "code": "KeyV", "windowsVirtualKeyCode": 86, "modifiers": 2}
    page.tell("Input.dispatchKeyEvent", type="keyDown", commands=["paste"], **key)
    page.wait(lambda: [label for _, label in read_results(page)] == ["ship"])
    page.find("#paste").click()
    page.wait(lambda: read_results(page)[0] == ("pasted picture", "ship"))
    page.driver.execute_async_script("navigator.clipboard.writeText('a word').then(...Array(2).fill(arguments[0]))")
    page.find("#paste").click()
    page.wait(lambda: "There is no picture on the clipboard." in page.texts("#trouble p")[0])
    page.find("#camera").click()
    page.find("dialog .main:enabled").click()
    page.wait(lambda: read_results(page)[0][0].startswith("camera ") and read_results(page)[0][1])
    assert not page.all("dialog, #trouble")


@slow
def test_late_answer_is_shown_at_its_own_picture(page):
    # The first answer is held back until the second one is there.
    page.run(
        "const real = window.fetch; let asked = 0;"
        "window.fetch = async (...all) => {"
        "  const mine = ++asked; const answer = await real(...all);"
        "  if (mine === 1) await new Promise((go) => (window.release = go)); return answer; }"
    )
    page.drop(CAT)
    page.wait(lambda: page.run("return !!window.release"))
    page.drop(SHIP)
    page.wait(lambda: read_results(page) == [(SHIP.name, "ship"), (CAT.name, None)])
    assert page.texts(".waiting") == ["Looking"]
    page.run("window.release()")
    page.wait(lambda: read_results(page) == [(SHIP.name, "ship"), (CAT.name, "cat")])


@slow
def test_answer_for_a_removed_picture_is_not_announced(page):
    page.run(
        "const real = Response.prototype.json;"
        "Response.prototype.json = async function () {"
        "  const found = await real.call(this);"
        "  if (this.url.includes('classify')) await new Promise((go) => (window.release = go));"
        "  return found; }"
    )
    choose_files(page, CAT)
    page.wait(lambda: page.run("return !!window.release"))
    page.find(".remove").click()
    page.run("window.release(); return new Promise((done) => setTimeout(done))")
    assert "cat, " not in page.run("return document.getElementById('said').textContent")


@slow
def test_failed_requests_are_reported_and_can_be_retried(page, server):
    server.guard.stopping = True
    try:
        choose_files(page, CAT)
        page.wait(lambda: "stopping" in page.texts(".result .wrong")[0])
    finally:
        server.guard.stopping = False
    page.tell("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.find(".result .quiet").click()
    page.wait(lambda: "does not answer" in page.texts(".result .wrong")[0])
    page.tell("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.find(".result .quiet").click()
    page.wait(lambda: read_results(page) == [(CAT.name, "cat")])
    assert page.run("return document.activeElement.matches('.result article')")  # the button that had it is gone


@slow
def test_answers_that_break_off_or_are_not_json_are_reported(page):
    page.run(
        "const real = window.fetch; window.asked = [];"
        "window.fetch = (url, ...rest) => window.asked.push(url) && window.body ? "
        "  Promise.resolve(new Response(window.body())) : real(url, ...rest);"
        "window.body = () => '<!doctype html><p>Log in'"
    )
    choose_files(page, CAT)
    page.wait(lambda: "is not JSON" in page.texts(".result .wrong")[0])
    page.run("window.body = () => new ReadableStream({start: (c) => c.error(new TypeError('network error'))})")
    page.find(".result .quiet").click()
    page.wait(lambda: "does not answer" in page.texts(".result .wrong")[0])
    page.run("window.body = null")
    page.find(".result .quiet").click()
    page.wait(lambda: read_results(page) == [(CAT.name, "cat")])


@slow
def test_page_works_in_an_older_browser(page):
    page.run("delete AbortSignal.any; delete AbortSignal.timeout; delete window.OffscreenCanvas")
    choose_files(page, CAT)
    page.find(".open").click()
    page.wait(lambda: page.all(".heat"))
    page.find("#camera").click()
    page.find("dialog .main:enabled").click()
    page.wait(lambda: len(read_results(page)) == 2 and read_results(page)[0][1])


@slow
def test_page_whose_server_did_not_answer_can_be_started_again(server, chromium):
    with chromium.block("*/v1/models"):
        chromium.open(server.url)
        again = chromium.find("#trouble button")
        again.send_keys("\n")  # fails once more
        chromium.wait(lambda: chromium.run("return document.activeElement === arguments[0]", again))
    again.send_keys("\n")
    chromium.wait(lambda: chromium.texts("#name") == ["cifar10"])
    assert not chromium.all("#trouble")
    assert chromium.run("return document.activeElement.id") == "files"  # the button that had the focus is gone
    chromium.console()


@slow
def test_page_that_does_not_start_says_so(server, chromium):
    with chromium.block("*/page/markdown.js"):
        chromium.open(server.url)
        chromium.wait(lambda: "The page has not started." in chromium.texts("#trouble p")[0])
    chromium.open(server.url)
    chromium.wait(lambda: chromium.texts("#name") == ["cifar10"])
    assert not chromium.all("#trouble")
    chromium.console()


@slow
def test_heat_map_goes_before_pictures_that_wait(page):
    choose_files(page, CAT)
    page.wait(lambda: page.all(".open"))
    page.run(
        "const real = window.fetch; window.asked = []; window.held = [];"
        "window.fetch = async (url, ...rest) => {"
        "  window.asked.push(String(url)); await new Promise((go) => window.held.push(go));"
        "  return real(url, ...rest); }"
    )
    choose_files(page, *[SHIP] * 6)
    page.wait(lambda: page.run("return window.asked.length") == 4)  # the other two wait
    page.find(".open").click()
    page.run("window.held.shift()()")
    page.wait(lambda: page.run("return window.asked.length") == 5)
    assert "/explain" in page.run("return window.asked[4]")
    page.run("setInterval(() => window.held.splice(0).forEach((go) => go()))")
    page.wait(lambda: page.all(".heat") and len([label for _, label in read_results(page) if label]) == 7)


@slow
def test_complaint_is_visible_on_a_page_that_was_scrolled(page):
    page.shape(700, 500)
    choose_files(page, *[CAT] * 8)
    page.wait(lambda: len([label for _, label in read_results(page) if label]) == 8)
    page.run("scrollTo(0, document.documentElement.scrollHeight)")
    page.run("document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer()}))")
    assert page.texts("#trouble p")[0].startswith("There is no picture on the clipboard.")
    place = page.run("return document.getElementById('trouble').getBoundingClientRect()")
    assert -1 < place["top"] < place["bottom"] < 501


@slow
def test_tables_of_a_card_keep_bars_and_empty_cells(page):
    script = (
        "const [text, done] = arguments;"
        "const read = (row) => [...row.cells].map((cell) => cell.textContent);"
        "import('/page/markdown.js').then(({renderMarkdown}) => "
        "  done([...renderMarkdown(text).querySelectorAll('tr')].map(read)))"
    )
    rows = page.driver.execute_async_script(script, "| a \\| b |  |\n|---|---|\n| `c` | d\\\\ |\n|| e\\| |")
    assert rows == [["a | b", ""], ["c", "d\\"], ["", "e|"]]


@slow
def test_page_asks_for_an_api_key(chromium):
    with run_server(access=Access(keys=("the-key-of-the-test",))) as server:
        chromium.open(server.url)
        for key in ("wrong", "the-key-of-the-test"):
            field = chromium.find("#key")
            field.send_keys(key + "\n")
            if key == "wrong":
                chromium.wait(lambda: chromium.texts(".wrong") == ["The server did not accept that key."])
        chromium.wait(lambda: chromium.all("#samples"))
        choose_files(chromium, CAT)
        chromium.wait(lambda: read_results(chromium) == [(CAT.name, "cat")])
        assert chromium.run("return [sessionStorage.length, localStorage.length]") == [1, 0]
        chromium.driver.refresh()
        chromium.wait(lambda: chromium.all("#samples"))
        assert not chromium.all("dialog")
    chromium.console()


@slow
def test_texts_that_no_header_carries_are_no_keys(chromium):
    with run_server(access=Access(keys=("the-key-of-the-test",))) as server:
        chromium.open(server.url)
        field = chromium.find("#key")
        for text in ("the-key-of-the-test\u200b", "\u201cthe-key-of-the-test\u201d"):
            field.send_keys(text + "\n")  # it replaces the text before it, which is selected
            chromium.wait(lambda: "another character" in chromium.texts(".wrong")[0])
            assert field.get_property("value") == text
        chromium.run("sessionStorage.setItem('shiftvit-api-key', 'the-key-of-the-test\u200b')")
        chromium.driver.refresh()
        chromium.find("#key").send_keys("the-key-of-the-test\n")
        chromium.wait(lambda: chromium.all("#samples"))
    chromium.console()


@slow
def test_key_dialog_stays_open_while_text_is_selected(chromium):
    from selenium.webdriver import ActionChains

    with run_server(access=Access(keys=("the-key-of-the-test",))) as server:
        chromium.open(server.url)
        field = chromium.find("#key")
        field.send_keys("\n")
        chromium.wait(lambda: chromium.texts(".wrong") == ["Enter the key first."])
        field.send_keys("the-key")
        ActionChains(chromium.driver).click_and_hold(field).move_by_offset(500, 0).release().perform()
        assert chromium.all("dialog")
        ActionChains(chromium.driver).move_to_element_with_offset(field, 500, 0).click().perform()
        chromium.wait(lambda: not chromium.all("dialog"))
    chromium.console()


@slow
def test_number_of_files_is_limited_and_key_is_asked_once(page, server, monkeypatch, tmp_path):
    names = [tmp_path / f"{index}.png" for index in range(101)]
    for name in names:
        name.touch()
    page.drop(*names)
    page.wait(lambda: page.texts("#count") == ["100 pictures"])
    assert page.texts("#trouble p")[0].startswith("The page took the first 100 of 101 files.")
    page.find("#clear").click()
    monkeypatch.setattr(server.guard._access, "keys", ("a-key-that-came-later",))
    choose_files(page, *[CAT] * 9)
    page.find("dialog .quiet").click()
    page.wait(
        lambda: [text.startswith("The API key is missing") for text in page.texts(".result .wrong")] == [True] * 9
    )
    assert not page.all("dialog")
    page.run("return new Promise((done) => setTimeout(done, 1100))")
    page.find(".result .answer .quiet").click()
    page.find("#key").send_keys("a-key-that-came-later\n")
    page.wait(lambda: read_results(page)[0] == (CAT.name, "cat"))


@slow
def test_labels_and_names_with_markup_stay_text(chromium, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    graph = load_graph("cifar10", "onnxruntime", 1)
    labels = (evil, "</script><b>", "\u202etac", "x" * 200, *graph.metadata.labels[4:])
    graph = dataclasses.replace(graph, metadata=graph.metadata.model_copy(update={"labels": labels}))
    name = tmp_path / "<b onclick=x>cat<b>.png"
    name.write_bytes(Path(SAMPLES / "airplane" / "test_00003.png").read_bytes())
    with run_server(graph=graph) as server:
        chromium.open(server.url, size=(360, 740))
        chromium.wait(lambda: chromium.all("#name"))
        choose_files(chromium, name)
        chromium.wait(lambda: read_results(chromium) == [(name.name, evil)])
        assert "</script><b>" in chromium.texts("#classes")[0]
        assert not chromium.run("return document.querySelectorAll('img[src=x], #results b, bdi *').length")
        assert chromium.run("return document.documentElement.scrollWidth") <= 360
    assert not chromium.console()


# Returns the lowest contrast of a text with its background, and that text's element (WCAG 2.2, 1.4.3).
CONTRAST_PROGRAM = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const light = (color) => channels(color).slice(0, 3)
  .map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if ((channels(color)[3] ?? 1) === 1) return color;
  }
};
let least = [21, ""];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!own || !node.checkVisibility() || node.closest(".unseen, .skip, noscript")) continue;
  const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < least[0]) least = [ratio, node.outerHTML.slice(0, 80)];
}
return least;
"""


@slow
@pytest.mark.parametrize(("dark", "size"), [(False, (1280, 900)), (True, (360, 740))])
def test_contrast_and_accessible_names(page, server, tmp_path, dark, size):
    (tmp_path / f"{'long-name-' * 20}.png").write_text("no picture")
    page.open(server.url, dark=dark, size=size)
    page.wait(lambda: page.all("#samples"))
    choose_files(page, CAT, *tmp_path.iterdir())
    page.wait(lambda: page.all(".result .wrong") and page.all(".open"))[0].click()
    page.wait(lambda: page.all(".heat"))
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
    least, text = page.run(CONTRAST_PROGRAM)
    assert least >= 4.5, text
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    roles = page.accessible()
    named = {
        "button",
        "link",
        "image",
        "img",
        "slider",
        "textbox",
        "combobox",
        "dialog",
        "region",
        "article",
        "heading",
    }
    assert not [role for role, name in roles if role in named and not name.strip()]
    assert {"main", "banner", "contentinfo", "log", "alert", "article", "slider"} <= {role for role, _ in roles}
    assert ("button", "Heat map") in roles
    assert ("image", CAT.name) in roles or ("img", CAT.name) in roles
    page.find("#card").click()
    page.wait(lambda: page.all("dialog table"))
    assert page.run(CONTRAST_PROGRAM)[0] >= 4.5
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    if size[0] < 500:
        small = [
            button.text or button.get_attribute("aria-label")
            for button in page.all("button, select, .button")
            if min(button.rect["width"], button.rect["height"]) < 24  # WCAG 2.2, 2.5.8
        ]
        assert not small


@slow
def test_model_for_images_of_any_size(chromium):
    graph = load_graph("cifar10", "onnxruntime", 1)
    with run_server(graph=dataclasses.replace(graph, metadata=remove_size(graph.metadata))) as server:
        chromium.open(server.url)
        chromium.wait(lambda: chromium.texts("#facts") == ["10 classes · any size · f32 · onnxruntime"])
    chromium.console()


@slow
def test_models_can_be_chosen(page, server, monkeypatch):
    monkeypatch.setitem(server.models, "<i>two", server.model)
    monkeypatch.setattr(server.model, "name", "<i>two")  # both entries then have this name
    page.open(server.url)
    page.wait(lambda: page.all("#models"))
    assert page.texts("#models option") == ["<i>two"] * 2
    page.run("const m = document.getElementById('models'); m.selectedIndex = 1; m.dispatchEvent(new Event('change'))")
    page.requests()
    choose_files(page, CAT)
    page.wait(lambda: read_results(page) == [(CAT.name, "cat")])
    assert page.texts(".by") == ["by <i>two"]
    assert f"{server.url}/v1/models/%3Ci%3Etwo/classify?top_k=5" in page.requests()


@slow
def test_reduced_motion_turns_animations_off(page, server):
    for still in (False, True):
        page.open(server.url, still=still)
        page.wait(lambda: page.all("#samples"))
        choose_files(page, CAT)
        page.wait(lambda: page.all(".bar"))
        # Those that have ended count too, as they fill forwards: elements are in place from their first frame.
        assert bool(page.run("return document.getAnimations().length")) != still

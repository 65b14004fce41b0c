"""Drives a headless Chromium and records what a page does in it."""

import contextlib
import json
import shutil
import time

import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # needed when running as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


class Browser:
    """Chromium with one page.

    Attributes:
        driver: the Selenium driver.
    """

    def __init__(self):
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = BINARY
        for flag in _FLAGS:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, Service(DRIVER))
        self.driver.set_script_timeout(10)

    def open(self, url, *, dark=False, size=(1280, 900), still=True):
        """Opens a URL with an empty session storage; `still` emulates a user who prefers reduced motion."""
        self.shape(*size)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        self.tell(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()]
        )
        self.driver.get(url)
        self.run("sessionStorage.clear()")

    @contextlib.contextmanager
    def block(self, pattern):
        """Makes requests to the URLs that match a pattern fail."""
        self.tell("Network.enable")
        self.tell("Network.setBlockedURLs", urls=[pattern])
        try:
            yield
        finally:
            self.tell("Network.setBlockedURLs", urls=[])

    def shape(self, width, height):
        """Sets the size of the page in CSS pixels."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def tell(self, command, **arguments):
        """Sends a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script, *arguments):
        """Runs JavaScript in the page and returns its result."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        """Returns the visible elements that match a CSS selector."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def find(self, selector):
        """Returns the first visible element that matches, once there is one: new elements fade in."""
        return self.wait(lambda: self.all(selector))[0]

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def wait(self, condition, seconds=10):
        """Waits until a function returns a true value, and returns that value."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(StaleElementReferenceException, IndexError):
                if value := condition():
                    return value
            assert time.monotonic() < end, f"after {seconds} s the page shows:\n{self.texts('body')}"
            time.sleep(0.02)

    def press(self, *keys):
        """Presses keys, one after another, in the element that has the focus."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def drop(self, *paths, place=(640, 600)):
        """Drags files from the desktop and drops them; returns whether the page showed that it accepts them."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        point = {"x": place[0], "y": place[1], "data": data}
        for kind in ("dragEnter", "dragOver"):
            self.tell("Input.dispatchDragEvent", type=kind, **point)
        shown = bool(self.all(".over"))
        self.tell("Input.dispatchDragEvent", type="drop", **point)
        return shown

    def console(self):
        """Returns the errors and warnings logged to the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def requests(self):
        """Returns the URLs that the page has requested since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def accessible(self):
        """Returns (role, name) of every node in the accessibility tree."""
        nodes = self.tell("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
        ]


@contextlib.contextmanager
def open_browser():
    """Yields a browser; skips the test if Chromium or Selenium is not installed."""
    if BINARY is None or DRIVER is None:
        pytest.skip("Chromium and its driver are not installed; Debian: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium")
    browser = Browser()
    try:
        yield browser
    finally:
        browser.driver.quit()

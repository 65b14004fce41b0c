"""A real Chromium without a window, and a record of what a page does in it."""

import contextlib
import json
import shutil
import time

import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root needs it
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


class Browser:
    """Chromium with one page.

    Attributes:
        driver: selenium's.
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
        """Opens an address in a fresh state; `still`: as for users who asked for less motion."""
        self.shape(*size)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        self.tell(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()]
        )
        self.driver.get(url)
        self.run("sessionStorage.clear()")

    def shape(self, width, height):
        """Sets the size of the page in CSS pixels."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def tell(self, command, **arguments):
        """Sends a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script, *arguments):
        """Runs JavaScript in the page; returns what it returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        """Returns the visible elements that a CSS selector finds."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def wait(self, condition, seconds=10):
        """Returns the first true value of a function."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(StaleElementReferenceException, IndexError):
                if value := condition():
                    return value
            assert time.monotonic() < end, f"after {seconds} s the page shows:\n{self.texts('body')}"
            time.sleep(0.02)

    def press(self, *keys):
        """Presses keys, one after another, wherever the focus is."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def drop(self, *paths, place=(640, 600)):
        """Drags files from the desktop and drops them; returns whether the page showed that it would take them."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        point = {"x": place[0], "y": place[1], "data": data}
        for kind in ("dragEnter", "dragOver"):
            self.tell("Input.dispatchDragEvent", type=kind, **point)
        shown = bool(self.all(".over"))
        self.tell("Input.dispatchDragEvent", type="drop", **point)
        return shown

    def console(self):
        """Returns the errors and warnings in the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def requests(self):
        """Returns the addresses that the page asked since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def accessible(self):
        """Returns (role, name) of every node that assistive technology is shown."""
        nodes = self.tell("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
        ]


@contextlib.contextmanager
def open_browser():
    """Yields a browser; skips the tests where there is none."""
    if BINARY is None or DRIVER is None:
        pytest.skip("Chromium and its driver are not installed; Debian: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium")
    browser = Browser()
    try:
        yield browser
    finally:
        browser.driver.quit()

"""What a person does with the chat page, and sees of it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SIZE = (1280, 860)
AXE = Path(__file__).parent / "vendor" / "axe.js"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def start_chromium(profile: Path | None = None) -> webdriver.Chrome:
    """Chromium without a window, which keeps what it logs."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*_FLAGS, f"--window-size={SIZE[0]},{SIZE[1]}"):
        options.add_argument(flag)
    if profile is not None:
        options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


class Browser:
    """The page of the server at ``url`` in ``driver``."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, **kept: Any) -> "Browser":
        """The page, with ``kept`` in the browser's storage."""
        self.driver.get(f"{self.url}/health")
        self.driver.execute_script("localStorage.clear()")
        for name, value in kept.items():
            self.keep(name, value)
        self.complaints()
        self.driver.get(f"{self.url}/ui")
        self.until(lambda: self.one("#state").get_attribute("data-state") != "away")
        return self

    def open_conversation(self, *turns: Mapping[str, Any], title: str = "A conversation", **kept: Any) -> "Browser":
        """The page with one conversation."""
        conversation = {"id": "1", "title": title, "begun": 1, "turns": list(turns)}
        return self.open(**{"conversation.1": conversation, "current": "1", **kept})

    def keep(self, name: str, value: Any) -> None:
        self.driver.execute_script(
            "localStorage.setItem(arguments[0], arguments[1])", f"phi3.{name}", json.dumps(value)
        )

    def kept(self, name: str) -> Any:
        text = self.driver.execute_script("return localStorage.getItem(arguments[0])", f"phi3.{name}")
        return None if text is None else json.loads(text)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition: Callable[[], Any], seconds: float = 15) -> Any:
        drawn_anew = [StaleElementReferenceException]  # between finding an element and reading it
        try:
            return WebDriverWait(self.driver, seconds, 0.05, drawn_anew).until(lambda _: condition())
        except TimeoutException as error:
            raise AssertionError(f"It did not happen in {seconds} s. The console says {self.complaints()}.") from error

    def ask(self, text: str) -> str:
        self.one("#prompt").send_keys(text, Keys.ENTER)
        return self.answer()

    def answer(self) -> str:
        """The last answer, once it is whole."""
        self.until(lambda: self.all(".turn.assistant .figures, .turn.assistant .trouble:not(.waiting)"))
        self.until(lambda: not self.all(".turn.live"))
        return self.all(".turn.assistant")[-1].find_element(By.CSS_SELECTOR, ".text").text

    def press(self, label: str, turn: int = -1) -> None:
        """A button below or above the answers of a turn."""
        buttons = self.all(".turn")[turn].find_elements(By.CSS_SELECTOR, ".doing button")
        next(b for b in buttons if b.text == label).click()

    def menu(self, label: str, conversation: int = 0) -> None:
        """An item of the menu of a conversation in the list."""
        self.run("arguments[0].scrollIntoView()", opener := self.all("#talks .more")[conversation])
        self.run("arguments[0].focus()", opener)
        opener.send_keys(Keys.ENTER)
        self.until(lambda: self.one("#menu").is_displayed())
        next(item for item in self.all("#menu button") if item.text == label).click()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    @contextmanager
    def without_policy(self) -> Iterator[None]:
        """Chromium ignores the content security policy of pages that are opened meanwhile."""
        self.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})

    def complaints(self) -> list[str]:
        """What Chromium's console says went wrong."""
        lines = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        severe = [line["message"] for line in lines if line["level"] == "SEVERE"]
        return [message for message in severe if "favicon.ico" not in message]  # /health has no icon

    def violations(self) -> list[str]:
        """What axe finds wrong for people with a screen reader, a keyboard or weak eyes."""
        self.run(AXE.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then(r => done(r.violations), e => done([{id: String(e), nodes: []}]))"
        )
        return [f"{one['id']}: {node['html']} {node.get('failureSummary')}" for one in found for node in one["nodes"]]


def values(**given: Any) -> dict[str, Any]:
    """Settings with these parameters."""
    return {"system": "", "values": given}


def question(text: str = "What is a castle?") -> dict[str, Any]:
    """A turn of a person."""
    return {"role": "user", "content": text}


def answered(*contents: str, **more: Any) -> dict[str, Any]:
    """A turn of a model."""
    request = {"model": "tested", "system": "", "generate_kwargs": {}}
    answers = [{"content": content} for content in contents]
    return {
        "role": "assistant",
        "state": "whole",
        "request": request,
        "answers": answers,
        "chosen": 0,
        "figures": "5 tokens",
        "trouble": "",
        **more,
    }

"""The conversations that the browser keeps: reload, rename, search, export, deletion."""

import json
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support import ENDLESS, LocalBackend, engine_of
from tests.web.browser import Browser, answered, question, values

pytestmark = pytest.mark.browser
GREEDY = values(temperature=0, max_new_tokens=24)


def conversation(number: int, title: str, *turns: Any) -> dict[str, Any]:
    return {f"conversation.{number}": {"id": str(number), "title": title, "begun": number, "turns": turns}}


THREE = {
    **conversation(1, "Castles", question("What is a castle?"), answered("A fortified home.")),
    **conversation(2, "Sums", question("347 + 285"), answered("632", "It is **632**.", chosen=1)),
    **conversation(3, "Fruits", question("Name three fruits"), answered("Apple, pear, plum.")),
}


def titles(browser: Browser) -> list[str]:
    return [title.text for title in browser.all("#talks .title")]


def test_conversations_are_kept_in_the_browser(browser: Browser) -> None:
    browser.open(settings=GREEDY)
    answer = browser.ask("First")
    browser.one("#new").click()
    assert browser.all(".tries button")
    browser.ask("Second")
    browser.driver.refresh()
    browser.until(lambda: len(browser.all("#talks li")) == 2)
    assert titles(browser) == ["Second", "First"]
    assert browser.one(".turn.user .text").text == "Second"
    browser.all("#talks .title")[1].click()
    assert browser.answer() == answer
    assert browser.one("#talks [aria-current] .title").text == "First"


def test_a_partial_answer_survives_a_reload(browser: Browser, backend: LocalBackend) -> None:
    engine: Any = engine_of(backend.replica)
    browser.open(settings=values(max_new_tokens=2000, **ENDLESS))
    browser.one("#prompt").send_keys("Go on for ever", Keys.ENTER)
    browser.until(lambda: len(browser.one(".turn.assistant .text").text) > 40)
    shown = browser.run(
        "const text = document.querySelector('.turn.assistant .text').textContent; location.reload(); return text"
    )
    browser.until(lambda: browser.all(".turn.assistant .figures"))
    assert browser.one(".turn.assistant .figures").text == "cut off when the page was left"
    kept = browser.run("return document.querySelector('.turn.assistant .text').textContent")
    assert kept.startswith(shown)  # the last piece may have come behind it
    browser.until(lambda: not engine._core.scheduler.has_work, 3)
    browser.one("#open-settings").click()
    browser.until(lambda: browser.all("#p-max_new_tokens"))
    field = browser.one("#p-max_new_tokens")
    field.clear()
    field.send_keys("8", Keys.TAB)
    browser.press("Regenerate")
    browser.until(lambda: browser.one(".turn.assistant .figures").text.startswith("8 tokens"))


def test_a_partial_answer_survives_a_browser_that_dies(browser: Browser) -> None:
    """What is kept is at most a second old, without any event of the page."""
    browser.open(settings=values(max_new_tokens=2000, **ENDLESS))
    browser.run("addEventListener('pagehide', event => event.stopImmediatePropagation(), true)")
    browser.one("#prompt").send_keys("Go on for ever", Keys.ENTER)

    def kept() -> str:
        (name,) = [name for name in browser.run("return Object.keys(localStorage)") if "conversation" in name]
        content: str = browser.kept(name.removeprefix("phi3."))["turns"][-1]["answers"][0]["content"]
        return content

    browser.until(lambda: len(kept()) > 40)
    browser.one("#stop").click()


def test_rename(browser: Browser) -> None:
    browser.open(**THREE)
    browser.menu("Rename", 1)
    field = browser.one("#talks input")
    assert field.get_attribute("value") == "Sums"
    assert browser.driver.switch_to.active_element == field
    field.send_keys("Additions", Keys.ENTER)  # what was there is selected
    assert titles(browser) == ["Fruits", "Additions", "Castles"]
    assert browser.kept("conversation.2")["title"] == "Additions"
    assert browser.driver.switch_to.active_element.text == "Additions"
    browser.menu("Rename", 1)
    browser.one("#talks input").send_keys("no", Keys.ESCAPE)
    assert titles(browser) == ["Fruits", "Additions", "Castles"]
    browser.menu("Rename", 1)
    browser.one("#talks input").send_keys("  ", Keys.ENTER)
    assert titles(browser) == ["Fruits", "Additions", "Castles"]


def test_search(browser: Browser) -> None:
    browser.open(**THREE)
    for words, found in {
        "castles": ["Castles"],  # in the title
        "PEAR": ["Fruits"],  # in an answer
        "it is": ["Sums"],  # in another answer than the first
        "a": ["Fruits", "Castles"],
        "home castle": ["Castles"],
        "dragon": [],
        "": ["Fruits", "Sums", "Castles"],
    }.items():
        browser.one("#search").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE, words)
        assert titles(browser) == found, words
        assert browser.one("#nothing-found").is_displayed() == (not found)


def test_deletion_is_undone(browser: Browser) -> None:
    browser.open(**THREE, current="2")
    browser.menu("Delete", 1)
    assert titles(browser) == ["Fruits", "Castles"]
    assert browser.one("#deleted").text.startswith("Deleted “Sums”.")
    assert browser.kept("conversation.2") is None
    assert browser.all(".welcome")
    assert browser.driver.switch_to.active_element == browser.one("#undo-delete")
    browser.one("#undo-delete").send_keys(Keys.ENTER)
    assert titles(browser) == ["Fruits", "Sums", "Castles"]
    assert not browser.one("#deleted").is_displayed()
    assert browser.kept("conversation.2") == THREE["conversation.2"] | {"turns": list(THREE["conversation.2"]["turns"])}
    assert browser.one(".turn.user .text").text == "347 + 285"
    browser.menu("Delete", 0)
    browser.one("#dismiss-delete").click()
    assert not browser.one("#deleted").is_displayed()
    browser.driver.refresh()
    browser.until(lambda: titles(browser) == ["Sums", "Castles"])


@pytest.fixture
def downloads(driver: webdriver.Chrome, tmp_path: Path) -> Path:
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    return tmp_path


def downloaded(browser: Browser, path: Path) -> str:
    browser.until(path.exists)
    return path.read_text(encoding="utf-8")


def test_export(browser: Browser, downloads: Path) -> None:
    browser.open(**THREE)
    browser.menu("Export as Markdown", 1)
    assert downloaded(browser, downloads / "Sums.md") == (
        "# Sums\n\n## You\n\n347 + 285\n\n## tested\n\n### Answer 1\n\n632\n\n### Answer 2\n\nIt is **632**.\n\n*tested · 5 tokens*\n"
    )
    browser.menu("Export as JSON", 2)
    assert json.loads(downloaded(browser, downloads / "Castles.json")) == [browser.kept("conversation.1")]
    browser.one("#export-all").click()
    everything = json.loads(downloaded(browser, downloads / "conversations.json"))
    assert [one["title"] for one in everything] == ["Fruits", "Sums", "Castles"]
    assert browser.complaints() == []


def import_file(browser: Browser, path: Path) -> str:
    """Import a file; what the page says of it."""
    if browser.one("#imported").is_displayed():
        browser.one("#dismiss-imported").click()
    assert not browser.one("#imported").is_displayed()
    browser.one("#import-file").send_keys(str(path))
    browser.until(lambda: browser.one("#imported").is_displayed())
    return browser.one("#imported span").text


def test_what_was_exported_is_imported(browser: Browser, downloads: Path) -> None:
    browser.open(**THREE)
    browser.one("#export-all").click()
    downloaded(browser, path := downloads / "conversations.json")
    kept = [browser.kept(name) for name in THREE]
    browser.open()
    assert import_file(browser, path) == "Imported 3 of 3 conversations from “conversations.json”."
    assert titles(browser) == ["Fruits", "Sums", "Castles"]
    assert [browser.kept(name) for name in THREE] == kept
    browser.all("#talks .title")[1].click()
    assert browser.one(".answer.chosen .text").text == "It is 632."
    told = "Imported 0 of 3 conversations from “conversations.json”. 3 were here already."
    assert import_file(browser, path) == told
    browser.menu("Rename", 0)
    browser.one("#talks input").send_keys("Other fruits", Keys.ENTER)
    assert import_file(browser, path).startswith("Imported 1 of 3 conversations")
    assert sorted(titles(browser)) == ["Castles", "Fruits", "Other fruits", "Sums"]  # none is overwritten
    browser.driver.refresh()
    browser.until(lambda: len(titles(browser)) == 4)
    assert browser.complaints() == []


WHERE_FROM = "The page imports what “Export all” and “Export as JSON” write."
A_TURN = answered("Yes")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("# Markdown", f"It is no JSON. {WHERE_FROM}"),
        ('{"id": "1"}', f"It is no list of conversations. {WHERE_FROM}"),
        ("[3]", "Conversation 1: must be an object."),
        (json.dumps([{"id": "1", "title": 3, "begun": 1, "turns": []}]), "Conversation 1: `title` must be a text."),
        ([question(), {"role": "tool"}], "Conversation 1, turn 2: `role` must be “user” or “assistant”."),
        ([{**A_TURN, "chosen": 1}], "Conversation 1, turn 1: `chosen` must be from 0 to 0."),
        ([{**A_TURN, "answers": [{}]}], "Conversation 1, turn 1: `answers` must be a list of answers with `content`."),
        (
            [{**A_TURN, "state": "new"}],
            "Conversation 1, turn 1: `state` must be one of whole, stopped, failed, interrupted.",
        ),
    ],
)
def test_a_wrong_file_is_explained(browser: Browser, tmp_path: Path, content: Any, problem: str) -> None:
    path = tmp_path / "wrong.json"
    turns = [{"id": "9", "title": "Nine", "begun": 9, "turns": content}]
    path.write_text(content if isinstance(content, str) else json.dumps(turns))
    browser.open(**THREE)
    assert import_file(browser, path) == f"“wrong.json” was not imported. {problem}"
    assert titles(browser) == ["Fruits", "Sums", "Castles"]


def test_the_menu_is_used_with_the_keyboard(browser: Browser) -> None:
    browser.open(**THREE)
    opener = browser.all("#talks .more")[0]
    assert opener.get_attribute("aria-label") == "Menu of “Fruits”"
    browser.run("arguments[0].focus()", opener)
    opener.send_keys(Keys.ENTER)

    def focused() -> str:
        return browser.driver.switch_to.active_element.text

    assert focused() == "Rename"
    for key, label in [(Keys.ARROW_DOWN, "Export as Markdown"), (Keys.ARROW_UP, "Rename"), (Keys.ARROW_UP, "Delete")]:
        browser.driver.switch_to.active_element.send_keys(key)
        assert focused() == label
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.until(lambda: not browser.one("#menu").is_displayed())
    assert browser.driver.switch_to.active_element == browser.all("#talks .more")[0]


def test_two_tabs_keep_each_other_s_conversations(browser: Browser) -> None:
    browser.open(settings=GREEDY)
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    try:
        browser.driver.get(f"{browser.url}/ui")
        browser.until(lambda: browser.one("#state").get_attribute("data-state") == "ready")
        browser.ask("In the second tab")
    finally:
        browser.driver.close()
        browser.driver.switch_to.window(first)
    browser.until(lambda: titles(browser) == ["In the second tab"])
    browser.ask("In the first tab")
    assert titles(browser) == ["In the first tab", "In the second tab"]


def test_another_tab_disturbs_neither_the_reader_nor_a_name_that_is_written(browser: Browser) -> None:
    long = conversation(4, "Long", question(), answered("\n\n".join(f"Paragraph {n}" for n in range(100))))
    browser.open(**THREE, **long, current="4")
    browser.run("document.querySelector('#log').scrollTop = 100")
    browser.menu("Rename", 0)
    browser.one("#talks input").send_keys("New na")
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    try:
        browser.driver.get(f"{browser.url}/health")
        browser.keep("conversation.5", THREE["conversation.1"] | {"id": "5", "title": "From the other tab", "begun": 5})
    finally:
        browser.driver.close()
        browser.driver.switch_to.window(first)
    browser.run("document.querySelector('#talks input').focus()")
    browser.one("#talks input").send_keys("me", Keys.ENTER)
    assert titles(browser) == ["From the other tab", "New name", "Fruits", "Sums", "Castles"]
    assert browser.run("return document.querySelector('#log').scrollTop") == 100


def test_a_full_browser_is_told(browser: Browser) -> None:
    browser.open(settings=GREEDY)
    browser.run("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }")
    assert browser.ask("Hello")
    assert browser.one("#full").is_displayed()
    assert "no room left" in browser.one("#full").text
    assert browser.one("#side").find_element(By.CSS_SELECTOR, "#export-all").is_displayed()

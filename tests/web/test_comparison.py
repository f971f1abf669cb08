"""One question under several settings or models, side by side on the page."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.config.app import AppConfig
from phi3_serve.core.variant_state import VariantState
from tests.support import LocalBackend, engine_of
from tests.web.browser import Browser, answered, question, values

pytestmark = pytest.mark.browser
QUESTION = "How to explain Internet for a medieval knight?"
FOR_EVER = "max_new_tokens=2000\neos_token_id=703\nsuppress_tokens=[703]"


def squeezed(text: str) -> str:
    return " ".join(text.split())


def columns(*settings: str, model: str = "tested") -> list[dict[str, str]]:
    """What the browser keeps of the last comparison."""
    return [{"model": model, "settings": text} for text in settings]


def boxes(browser: Browser) -> list[WebElement]:
    return browser.all(".contestant")


def compare(browser: Browser, text: str = QUESTION) -> list[WebElement]:
    """Open the comparison of a question from its field, and ask it."""
    browser.one("#prompt").send_keys(text)
    browser.one("#compare-this").click()
    browser.one("#compare-question").send_keys(Keys.ENTER)
    return boxes(browser)


def wait_for_all(browser: Browser) -> None:
    browser.until(lambda: len(browser.all(".contestant dl.figures")) == len(boxes(browser)))


def figures(browser: Browser, box: WebElement) -> dict[str, str]:
    """What was measured of the answer in a column; empty until it has ended."""
    names = "[...arguments[0].querySelectorAll('dl.figures dt')].map(name => [name.textContent, name.nextSibling.textContent])"
    return dict(browser.run(f"return {names}", box))


def text_of(box: WebElement) -> str:
    return squeezed(box.find_element(By.CSS_SELECTOR, ".answers").text)


def press(box: WebElement, label: str) -> None:
    next(b for b in box.find_elements(By.CSS_SELECTOR, "button") if b.text == label).click()


def completion(client: TestClient, *turns: str, **generate_kwargs: Any) -> Any:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    body = {"model": "tested", "messages": messages, "generate_kwargs": generate_kwargs}
    return client.post("/v1/chat/completions", json=body).json()["choices"][0]


def test_settings_are_compared_side_by_side(browser: Browser, client: TestClient) -> None:
    num_tokens = 200  # so many do not come at once, whatever else this machine does
    long = {"temperature": 0, "max_new_tokens": num_tokens, "top_logprobs": 0}
    short = {"temperature": 0.9, "seed": 5, "max_new_tokens": 6, "stop": "never here"}
    lines = ["\n".join(f"{name}={value}" for name, value in one.items()) for one in (long, short)]
    browser.open(compare=columns(*lines))
    left, right = compare(browser)
    wait_for_all(browser)
    expected = completion(client, QUESTION, **long)
    assert text_of(left) == squeezed(expected["message"]["content"])
    assert text_of(right) == squeezed(completion(client, QUESTION, **short)["message"]["content"])
    logprobs = [token["logprob"] for token in expected["logprobs"]["content"]]
    assert figures(browser, left)["Probability of a token"] == f"{100 * math.exp(sum(logprobs) / num_tokens):.0f} %"
    assert (figures(browser, left)["Tokens"], figures(browser, right)["Tokens"]) == (str(num_tokens), "6")
    assert float(figures(browser, left)["Tokens/s"]) > 0
    assert figures(browser, left)["First token"].endswith(" ms")
    assert figures(browser, left)["Ended"] == "at its maximum length"
    assert "Probability of a token" not in figures(browser, right)
    assert left.rect["y"] == right.rect["y"]
    assert left.rect["x"] + left.rect["width"] < right.rect["x"]
    press(left, "Show as curl")
    assert f'"max_new_tokens": {num_tokens}' in browser.one("#curl pre").text
    browser.one("#curl pre").send_keys(Keys.ESCAPE)
    browser.until(lambda: not browser.one("#curl").is_displayed())
    assert browser.one("#compare").is_displayed()
    assert browser.complaints() == []


def test_an_answer_that_ends_by_itself_says_so(browser: Browser, client: TestClient) -> None:
    tokens = completion(client, QUESTION, temperature=0, max_new_tokens=24, top_logprobs=0)["logprobs"]["content"]
    word = next(token["token"].strip() for token in tokens[2:] if token["token"].strip().isalpha())
    browser.open(compare=columns(f"temperature=0\nstop={word}", "temperature=0\nmax_new_tokens=1"))
    left, right = compare(browser)
    wait_for_all(browser)
    assert word not in text_of(left)
    assert (figures(browser, left)["Ended"], figures(browser, right)["Ended"]) == ("by itself", "at its maximum length")


@pytest.fixture
def two_models(
    driver: webdriver.Chrome,
    backend: LocalBackend,
    config: AppConfig,
    serve_app: Callable[[FastAPI], str],
    browser: Browser,
) -> Browser:
    """The page of a server with two names of the tested model."""
    models = [{**config.model_dump()["models"][0], "name": name} for name in ("tested", "other")]
    both = LocalBackend(backend.replica)
    both.state_of = {"tested": VariantState("ready"), "other": VariantState("ready")}
    return Browser(
        driver, serve_app(create_app(both, AppConfig.model_validate({**config.model_dump(), "models": models})))
    )


def test_the_usual_columns_are_the_models_that_are_ready(two_models: Browser) -> None:
    browser = two_models.open(settings=values(temperature=0, max_new_tokens=4))
    browser.until(lambda: browser.all("#p-temperature"))
    left, right = compare(browser)
    wait_for_all(browser)
    selects = browser.all(".contestant select")
    assert [Select(one).first_selected_option.text for one in selects] == ["tested", "other"]
    assert [area.get_attribute("value") for area in browser.all(".contestant textarea")] == [
        "temperature=0\nmax_new_tokens=4"
    ] * 2
    assert text_of(left) == text_of(right) != ""
    made = [made.text for made in browser.all(".contestant .made-by")]
    assert made == [f"{model} · temperature 0 · max_new_tokens 4" for model in ("tested", "other")]


def test_one_model_is_compared_with_another_temperature(browser: Browser) -> None:
    browser.open(settings=values(max_new_tokens=4))
    browser.until(lambda: browser.all("#p-temperature"))
    browser.one("#compare-this").click()
    shown = [area.get_attribute("value") for area in browser.all(".contestant textarea")]
    assert shown == ["max_new_tokens=4", "max_new_tokens=4\ntemperature=0"]
    browser.one("#compare-question").send_keys(Keys.ENTER)
    assert not browser.all(".contestant .turn")  # there is no question yet


def test_columns_come_and_go_and_are_kept(browser: Browser) -> None:
    browser.open(compare=columns("temperature=0", "temperature=1"))
    browser.one("#compare-this").click()
    removers = "[aria-label^='Remove column']"
    assert [button.is_enabled() for button in browser.all(removers)] == [False, False]
    browser.one("#add-column").click()
    browser.driver.switch_to.active_element.send_keys(Keys.CONTROL, "a", Keys.NULL, "top_k=5", Keys.TAB)
    browser.one("#add-column").click()
    assert not browser.one("#add-column").is_enabled()
    assert [box.get_attribute("aria-label") for box in boxes(browser)] == [f"Column {n}" for n in (1, 2, 3, 4)]
    browser.all(removers)[0].click()
    assert browser.kept("compare") == columns("temperature=1", "top_k=5", "top_k=5")
    browser.driver.refresh()
    browser.until(lambda: browser.one("#state").get_attribute("data-state") == "ready")
    browser.one("#compare-this").click()
    assert [box.get_attribute("aria-label") for box in boxes(browser)] == [f"Column {n}" for n in (1, 2, 3)]


def test_an_error_stays_in_its_column(browser: Browser) -> None:
    browser.open(compare=columns("temperature=0\nmax_new_tokens=5", "top_p=7", "temperatur=1", "fast"))
    good, *bad = compare(browser)
    wait_for_all(browser)
    assert figures(browser, good)["Tokens"] == "5"
    troubles = [box.find_element(By.CSS_SELECTOR, ".trouble").text for box in bad]
    assert "top_p" in troubles[0]
    assert "temperature" in troubles[1]  # what was meant
    assert troubles[2] == "The setting “fast” must be NAME=VALUE, for example temperature=0.3."
    assert [figures(browser, box) for box in bad] == [{"Ended": "with an error"}] * 3
    assert "Continue" not in bad[0].text
    area = bad[2].find_element(By.CSS_SELECTOR, "textarea")
    area.clear()
    area.send_keys("temperature=0\nmax_new_tokens=3")
    press(bad[2], "Ask again")
    browser.until(lambda: figures(browser, bad[2]).get("Tokens") == "3")
    assert figures(browser, good)["Tokens"] == "5"


def test_each_column_can_be_stopped(browser: Browser, backend: LocalBackend) -> None:
    engine: Any = engine_of(backend.replica)
    browser.open(compare=columns(FOR_EVER, FOR_EVER, FOR_EVER))
    first, second, third = compare(browser)
    browser.until(lambda: all(len(text_of(box)) > 20 for box in (first, second, third)))
    stop = next(one for one in second.find_elements(By.CSS_SELECTOR, "button") if one.text == "Stop")
    place, tall = stop.rect, second.rect["height"]
    browser.until(lambda: second.rect["height"] > tall)
    assert stop.rect == place  # also when the answer has more lines
    stop.click()
    browser.until(lambda: figures(browser, second).get("Ended") == "stopped")
    kept, other = text_of(second), text_of(first)
    browser.until(lambda: len(text_of(first)) > len(other))
    assert text_of(second) == kept
    browser.one("#compare-question").send_keys(Keys.ESCAPE)
    wait_for_all(browser)
    assert {figures(browser, box)["Ended"] for box in (first, second, third)} == {"stopped"}
    assert browser.one("#compare").is_displayed()
    browser.until(lambda: not engine._core.scheduler.has_work, 3)
    press(first, "Ask again")
    browser.until(lambda: browser.one("#stop-all").is_displayed())
    browser.one("#close-compare").click()
    browser.until(lambda: not engine._core.scheduler.has_work, 3)


def test_the_conversation_goes_on_with_an_answer(browser: Browser, client: TestClient) -> None:
    browser.open(
        settings=values(temperature=0, max_new_tokens=6),
        compare=columns("temperature=0\nmax_new_tokens=3", "top_k=1\nmax_new_tokens=9"),
    )
    compare(browser)
    wait_for_all(browser)
    taken = text_of(boxes(browser)[1])
    press(boxes(browser)[1], "Continue with this answer")
    assert not browser.one("#compare").is_displayed()
    assert browser.driver.switch_to.active_element == browser.one("#prompt")
    browser.until(lambda: browser.one("#prompt").get_attribute("value") == "")
    assert squeezed(browser.answer()) == taken
    assert browser.one(".made-by").text == "tested · top_k 1 · max_new_tokens 9"
    assert browser.one("#talks [aria-current] .title").text == QUESTION
    browser.driver.refresh()
    browser.until(lambda: browser.all(".turn.assistant"))
    (kept,) = [
        turn["answers"][0]["content"]
        for turn in browser.run(
            "return JSON.parse(localStorage.getItem(Object.keys(localStorage).find(name => name.includes('conversation.')))).turns"
        )[1:]
    ]
    second = browser.ask("And shorter?")
    expected = completion(client, QUESTION, kept, "And shorter?", temperature=0, max_new_tokens=6)
    assert squeezed(second) == squeezed(expected["message"]["content"])


def test_an_earlier_question_is_compared_in_its_place(browser: Browser, client: TestClient) -> None:
    turns = [question("Name three fruits"), answered("Apple, pear, plum."), question("And animals?"), answered("Dog.")]
    lines = ("temperature=0\nmax_new_tokens=5", "temperature=0\nmax_new_tokens=7")
    browser.open_conversation(*turns, question("Thanks"), answered("Welcome."), title="Fruits", compare=columns(*lines))
    browser.one("#prompt").send_keys("not yet sent")
    browser.press("Compare", 2)
    assert browser.one("#compare-question").get_attribute("value") == "And animals?"
    assert browser.one("#compare-place").text.startswith("The question follows 2 messages of “Fruits”.")
    browser.one("#compare-question").send_keys(Keys.ENTER)
    wait_for_all(browser)
    expected = completion(
        client, "Name three fruits", "Apple, pear, plum.", "And animals?", temperature=0, max_new_tokens=7
    )
    assert text_of(boxes(browser)[1]) == squeezed(expected["message"]["content"])
    browser.one("#compare-question").send_keys(Keys.ESCAPE)
    browser.until(lambda: not browser.one("#compare").is_displayed())
    assert len(browser.all(".turn:not(.contestant *)")) == 6
    browser.press("Compare", 2)  # the answers are still there
    assert text_of(boxes(browser)[1]) == squeezed(expected["message"]["content"])
    press(boxes(browser)[1], "Continue with this answer")
    assert len(browser.all("#log .turn")) == 4
    assert squeezed(browser.answer()) == squeezed(expected["message"]["content"])
    time.sleep(0.2)
    assert browser.one("#prompt").get_attribute("value") == "not yet sent"


def test_a_question_that_is_not_asked_stays_in_its_field(browser: Browser) -> None:
    browser.open()
    browser.one("#prompt").send_keys("Half a")
    browser.one("#compare-this").click()
    browser.one("#compare-question").send_keys(" question", Keys.ESCAPE)
    browser.until(lambda: browser.one("#prompt").get_attribute("value") == "Half a question")


def test_it_is_used_with_the_keyboard(browser: Browser) -> None:
    browser.open(compare=columns("temperature=0\nmax_new_tokens=3", "max_new_tokens=4"))
    browser.one("#prompt").send_keys(QUESTION, Keys.TAB)
    assert browser.driver.switch_to.active_element == browser.one("#compare-this")
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    wait_for_all(browser)
    reached = []
    for _ in range(20):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.driver.switch_to.active_element
        reached.append(focused.get_attribute("aria-label") or focused.text or focused.get_attribute("id"))
        if focused.text == "Continue with this answer":
            break
    assert reached[:2] == ["+ Column", "Ask all"]
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.until(lambda: not browser.one("#compare").is_displayed())
    assert browser.one(".made-by").text == "tested · temperature 0 · max_new_tokens 3"


def test_probabilities_are_seen_above_the_comparison(browser: Browser) -> None:
    browser.open(compare=columns("temperature=0\nmax_new_tokens=3\ntop_logprobs=2", "max_new_tokens=3"))
    left, _ = compare(browser)
    wait_for_all(browser)
    press(left, "Probabilities")
    browser.run("document.querySelector('.contestant .tokens').focus()")
    left.find_element(By.CSS_SELECTOR, ".tokens").send_keys(Keys.HOME)
    token, box = left.find_element(By.CSS_SELECTOR, ".token").rect, browser.one("#token").rect
    assert abs(box["y"] - (token["y"] + token["height"])) < 12 or abs(box["y"] + box["height"] - token["y"]) < 12
    on_top = "const {left, top} = arguments[0].getBoundingClientRect(); const seen = arguments[0]; seen.style.pointerEvents = 'auto'; return seen.contains(document.elementFromPoint(left + 5, top + 5))"
    assert browser.run(on_top, browser.one("#token"))
    left.find_element(By.CSS_SELECTOR, ".tokens").send_keys(Keys.ESCAPE)
    assert not browser.one("#token").is_displayed()
    assert browser.one("#compare").is_displayed()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, theme: str, width: int) -> None:
    metrics = {"width": width, "height": 780, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.open(theme=theme, compare=columns("max_new_tokens=40\ntop_logprobs=0", "top_p=7", FOR_EVER))
        compare(browser)
        browser.until(lambda: len(browser.all(".contestant dl.figures")) == 2)
        assert browser.violations() == []
        browser.one("#stop-all").click()
        wait_for_all(browser)
        assert browser.violations() == []
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        tops = [box.rect["y"] for box in boxes(browser)]
        assert (len(set(tops)) == 1) == (width == 1280)
        widest = browser.run(
            "return document.querySelector('#compare').scrollWidth - document.querySelector('#compare').clientWidth"
        )
        assert widest == 0
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

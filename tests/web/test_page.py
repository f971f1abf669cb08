"""The chat page in a real Chromium, over a real replica and a real socket."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from selenium import webdriver
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.config.app import AppConfig
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import ModelUnavailable
from phi3_serve.web import page as page_module
from phi3_serve.web.page import POLICY, chat_page
from tests.support import ENDLESS, LocalBackend, engine_of
from tests.web.browser import Browser, answered, question, values

pytestmark = pytest.mark.browser
FOLDER = Path(page_module.__file__).parent
QUESTION = "How to explain Internet for a medieval knight?"
GREEDY = {"temperature": 0, "max_new_tokens": 24}


def by_chat(client: TestClient, **kwargs: Any) -> str:
    body = {"messages": [{"role": "user", "content": QUESTION}], "generate_kwargs": kwargs}
    text: str = client.post("/chat", json=body).json()["Result"]
    return text


def squeezed(text: str) -> str:
    """A browser shows the spaces at the ends of lines no more than a person sees them."""
    return " ".join(text.split())


def test_the_answer_is_that_of_chat(browser: Browser, client: TestClient) -> None:
    browser.open(settings=values(**GREEDY))
    assert squeezed(browser.ask(QUESTION)) == squeezed(by_chat(client, do_sample=False, max_new_tokens=24))
    figures = browser.one(".turn.assistant .figures").text
    assert figures.startswith("24 tokens · ")
    assert "first after " in figures
    assert browser.one("#send").is_displayed()
    assert not browser.one("#stop").is_displayed()
    assert browser.complaints() == []


@pytest.mark.parametrize("path", ["openapi.json", "v1/models"])
def test_settings_and_model_hold_for_a_question_that_is_asked_at_once(
    browser: Browser, client: TestClient, path: str
) -> None:
    """The page learns from the server which parameters and models there are, and may be asked before."""
    late = f"""const real = fetch; window.fetch = async (path, ...more) => {{
        if (path === "{path}") await new Promise(done => setTimeout(done, 1500));
        return real(path, ...more);
    }}"""
    browser.driver.get(f"{browser.url}/health")
    browser.run("localStorage.clear()")
    browser.keep("settings", values(**GREEDY))
    kept = browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": late})
    try:
        browser.driver.get(f"{browser.url}/ui")
        assert not browser.all("#p-temperature" if path == "openapi.json" else "#model option")
        answer = browser.ask(QUESTION)
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", kept)
    assert squeezed(answer) == squeezed(by_chat(client, do_sample=False, max_new_tokens=24))


def test_nothing_comes_from_elsewhere(browser: Browser) -> None:
    browser.open()
    browser.until(lambda: browser.all("#p-temperature"))
    loaded = browser.driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert all(name.startswith((browser.url, "data:")) for name in loaded)
    assert browser.complaints() == []


def test_the_policy_lets_nothing_else_run(browser: Browser, client: TestClient) -> None:
    browser.open()
    browser.driver.execute_script(
        """const link = document.createElement("a");
        link.href = "javascript:window.ran = true"; document.body.append(link); link.click()"""
    )
    with pytest.raises(JavascriptException, match="TrustedHTML"):
        browser.run("document.body.innerHTML = '<b>x</b>'")
    with pytest.raises(JavascriptException, match="TrustedScript"):
        browser.run("document.createElement('script').text = 'window.ran = true'")
    with pytest.raises(JavascriptException, match="TrustedScript"):
        browser.run("document.createElement('img').setAttribute('onerror', 'window.ran = true')")
    time.sleep(0.3)
    assert browser.run("return window.ran") is None
    assert any("Content Security Policy" in line for line in browser.complaints())
    page = client.get("/ui")
    assert page.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert page.text == chat_page().html
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_text_is_inert(browser: Browser) -> None:
    wicked = "<img src=x onerror='window.ran = true'><script>window.ran = true</script> **bold** `code` [a](javascript:alert(1))"
    browser.open_conversation(question(wicked), answered(wicked), title=wicked)
    assert browser.one(".turn.user .text").text == wicked
    assert browser.one("#talks .title").text == wicked
    text = browser.one(".turn.assistant .text")
    assert [e.tag_name for e in text.find_elements(By.CSS_SELECTOR, "*")] == ["p", "strong", "code"]
    assert "<img src=x onerror='window.ran = true'>" in text.text
    assert browser.run("return window.ran") is None
    assert browser.complaints() == []


def test_a_browser_keeps_the_files_until_they_change(client: TestClient) -> None:
    version = chat_page().version
    assert f'src="ui/{version}/main.js"' in client.get("/ui").text
    for path in ("main.js", "style.css", "vendor/katex.css", "vendor/fonts/KaTeX_Main-Regular.woff2"):
        plain = client.get(f"/ui/{version}/{path}", headers={"accept-encoding": "identity"})
        packed = client.get(f"/ui/{version}/{path}", headers={"accept-encoding": "gzip"})
        assert (plain.status_code, packed.headers["content-encoding"]) == (200, "gzip")
        assert plain.content == packed.content == (FOLDER / path).read_bytes()
        assert "immutable" in plain.headers["cache-control"]
        of_another = client.get(f"/ui/of-another-version/{path}")
        assert (of_another.content, of_another.headers["cache-control"]) == (plain.content, "no-store")
    assert client.get("/ui/", follow_redirects=True).text == client.get("/ui").text
    for path in ("none.js", "page.py", "page.html", "../config.py", "%2e%2e/config.py", "vendor/SHA256SUMS", ""):
        assert client.get(f"/ui/{version}/{path}").status_code == 404


@pytest.mark.parametrize("how", ["escape", "button"])
def test_an_answer_can_be_stopped(browser: Browser, backend: LocalBackend, how: str) -> None:
    engine: Any = engine_of(backend.replica)
    browser.open(settings=values(max_new_tokens=2000, **ENDLESS))
    browser.one("#prompt").send_keys(QUESTION, Keys.ENTER)
    browser.until(lambda: len(browser.one(".turn.assistant .text").text) > 20)
    assert browser.one("#stop").is_displayed()
    if how == "escape":
        browser.one("#prompt").send_keys(Keys.ESCAPE)
    else:
        browser.one("#stop").click()
    browser.until(lambda: not browser.all(".turn.live"))
    kept = browser.answer()
    assert len(kept) > 20
    assert browser.one(".turn.assistant .figures").text.startswith("stopped")
    time.sleep(0.5)
    assert browser.answer() == kept
    browser.until(lambda: not engine._core.scheduler.has_work, 3)


def test_regenerate_edit_and_carry_on(browser: Browser) -> None:
    browser.open(settings=values(**GREEDY))
    first = browser.ask(QUESTION)
    browser.press("Regenerate")
    assert browser.answer() == first
    second = browser.ask("And shorter?")
    assert len(browser.all(".turn")) == 4
    browser.press("Edit", 0)
    area = browser.one("textarea.edit")
    assert area.get_attribute("value") == QUESTION
    area.clear()
    area.send_keys("What is the meaning of life?", Keys.ENTER)
    browser.until(lambda: len(browser.all(".turn")) == 2)
    changed = browser.answer()
    assert changed not in (first, second)
    assert browser.one(".turn.user .text").text == "What is the meaning of life?"


def test_the_end_of_an_answer_leaves_the_focus_where_the_reader_is(browser: Browser) -> None:
    browser.open(settings=values(max_new_tokens=2000, **ENDLESS))
    for elsewhere, expected in (("#search", "search"), ("#stop", "prompt")):
        browser.one("#prompt").send_keys(QUESTION, Keys.ENTER)
        browser.until(lambda: browser.one("#stop").is_displayed())
        browser.run("arguments[0].focus()", browser.one(elsewhere))
        browser.run("document.getElementById('stop').click()")
        browser.until(lambda: browser.one("#send").is_displayed())
        browser.until(lambda: not browser.all(".turn.live"))
        assert browser.driver.switch_to.active_element.get_attribute("id") == expected


def test_the_end_of_an_answer_leaves_what_is_selected(browser: Browser) -> None:
    settings = values(max_new_tokens=2000, **ENDLESS)
    browser.open_conversation(question(), answered("A house with thick walls."), settings=settings)
    browser.one("#prompt").send_keys(QUESTION, Keys.ENTER)
    browser.until(lambda: browser.one("#stop").is_displayed())
    browser.run("document.activeElement.blur(); getSelection().selectAllChildren(document.querySelector('.text > p'))")
    browser.run("document.getElementById('stop').click()")
    browser.until(lambda: not browser.all(".turn.live"))
    assert browser.one("#send").is_displayed()
    assert browser.run("return String(getSelection())").strip() == "A house with thick walls."


def test_a_message_that_is_not_edited_stays_in_its_place(browser: Browser) -> None:
    browser.open_conversation(*[question(), answered("A house with thick walls. " * 40)] * 8)
    browser.run("document.getElementById('log').scrollTop = 0")
    browser.press("Edit", 0)
    browser.one("textarea.edit").send_keys("Another", Keys.ESCAPE)
    assert browser.all(".turn.user .text")[0].text == "What is a castle?"
    assert browser.driver.switch_to.active_element.text == "Edit"
    assert browser.run("return document.getElementById('log').scrollTop") == 0


@pytest.mark.parametrize("how", ["regenerate", "edit"])
def test_an_answer_that_runs_can_be_asked_anew(browser: Browser, backend: LocalBackend, how: str) -> None:
    engine: Any = engine_of(backend.replica)
    browser.open(settings=values(max_new_tokens=2000, **ENDLESS))
    browser.one("#prompt").send_keys(QUESTION, Keys.ENTER)
    browser.until(lambda: len(browser.one(".turn.assistant .text").text) > 20)
    if how == "regenerate":
        browser.press("Regenerate")
    else:
        browser.press("Edit", 0)
        browser.one("textarea.edit").send_keys(" Really?", Keys.ENTER)
        browser.until(lambda: browser.one(".turn.user .text").text == f"{QUESTION} Really?")
    browser.until(lambda: browser.all(".turn.live"))
    browser.until(lambda: len(browser.one(".turn.assistant .text").text) > 20)
    assert len(browser.all(".turn")) == 2
    assert browser.one("#stop").is_displayed()
    browser.one("#stop").click()
    browser.until(lambda: not browser.all(".turn.live"))
    assert len(browser.answer()) > 20
    browser.until(lambda: not engine._core.scheduler.has_work, 3)


def test_every_parameter_has_its_place_meaning_and_range(browser: Browser, client: TestClient) -> None:
    browser.open()
    browser.until(lambda: browser.all("#p-temperature"))
    properties = client.get("/openapi.json").json()["components"]["schemas"]["GenerationParameters"]["properties"]
    shown = {f.get_attribute("id").removeprefix("p-") for f in browser.all("#settings [id^='p-']")}  # type: ignore[union-attr]
    assert set(properties) - shown == {"output_scores", "return_dict_in_generate", "prompt_logprobs"}
    browser.one("#open-settings").click()
    field = browser.one("#p-top_p").find_element(By.XPATH, "..")
    assert properties["top_p"]["description"] in field.text
    assert "From 0 to 1." in field.text
    assert browser.one("#p-top_p").get_attribute("placeholder") == "default: 1"


def test_settings_reach_the_model_and_bad_ones_are_explained(browser: Browser, client: TestClient) -> None:
    browser.open(settings=values(temperature=0))
    browser.one("#open-settings").click()
    browser.until(lambda: browser.all("#p-max_new_tokens"))
    browser.one("#p-max_new_tokens").send_keys("5", Keys.TAB)
    browser.one("#system").send_keys("Be brief.", Keys.TAB)
    body = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
        "generate_kwargs": {"do_sample": False, "max_new_tokens": 5},
    }
    assert squeezed(browser.ask(QUESTION)) == squeezed(client.post("/chat", json=body).json()["Result"])
    browser.one("#p-top_p").send_keys("7", Keys.TAB)
    browser.press("Regenerate")
    browser.until(lambda: browser.all(".trouble"))
    assert "top_p" in browser.one(".trouble").text
    browser.one("#reset").click()
    browser.until(lambda: browser.one("#p-top_p").get_attribute("value") == "")
    assert browser.one("#system").get_attribute("value") == ""


class WakingBackend(LocalBackend):
    """Answers as the ingress does while a model is not ready."""

    async def generate(self, request: Any) -> Any:
        state = self.state_of["tested"]
        if state.state != "ready":
            raise ModelUnavailable(f"Model tested is loading. {state.detail}", state.retry_after_s)
        async for event in super().generate(request):
            yield event


@pytest.fixture
def waking(backend: LocalBackend, config: AppConfig, serve_app: Callable[[FastAPI], str]) -> tuple[WakingBackend, str]:
    waking = WakingBackend(backend.replica)
    waking.state_of = {"tested": VariantState("loading", "40 % of the weights", 2)}
    return waking, serve_app(create_app(waking, config))


def test_a_model_that_loads_is_waited_for(driver: webdriver.Chrome, waking: tuple[WakingBackend, str]) -> None:
    backend, url = waking
    browser = Browser(driver, url).open(settings=values(**GREEDY))
    assert browser.one("#state").text == "loading: 40 % of the weights"
    browser.one("#prompt").send_keys(QUESTION, Keys.ENTER)
    browser.until(lambda: "Asking again in" in browser.one(".trouble.waiting").text)
    backend.state_of = {"tested": VariantState("ready")}
    assert browser.answer()
    browser.until(lambda: browser.one("#state").text.startswith("ready"))


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (VariantState("scaled_to_zero"), "asleep; starts when asked"),
        (
            VariantState("unplaceable", "It needs 1 GPU; this cluster has none."),
            "cannot run here: It needs 1 GPU; this cluster has none.",
        ),
        (VariantState("failed", "no weights"), "could not be started: no weights"),
    ],
)
def test_each_state_is_told(
    driver: webdriver.Chrome, waking: tuple[WakingBackend, str], state: VariantState, shown: str
) -> None:
    backend, url = waking
    backend.state_of = {"tested": state}
    browser = Browser(driver, url).open()
    assert browser.one("#state").text == shown
    assert browser.one("#state").get_attribute("data-state") == state.state
    assert shown.split(":")[0] in Select(browser.one("#model")).options[0].text
    if state.state == "unplaceable":
        browser.one("#prompt").send_keys("hi", Keys.ENTER)
        browser.until(lambda: browser.all(".trouble"))
        assert "this cluster has none" in browser.one(".trouble").text


def test_a_key_is_asked_for_and_sent(
    driver: webdriver.Chrome, backend: LocalBackend, config: AppConfig, serve_app: Callable[[FastAPI], str]
) -> None:
    guarded = AppConfig.model_validate({**config.model_dump(), "auth": {"key_hashes": [hash_of("open sesame")]}})
    browser = Browser(driver, serve_app(create_app(backend, guarded)))
    driver.get(f"{browser.url}/health")
    driver.execute_script("localStorage.clear()")
    browser.keep("settings", values(temperature=0, max_new_tokens=6))
    driver.get(f"{browser.url}/ui")
    browser.until(lambda: "asks for an API key" in browser.one("#state").text)
    browser.one("#open-settings").click()
    browser.one("#key").send_keys("open sesame", Keys.TAB)
    browser.until(lambda: browser.one("#state").get_attribute("data-state") == "ready")
    assert browser.ask("hi")
    browser.press("Show as curl")
    assert "open sesame" not in browser.one("#curl pre").text


def test_a_key_that_no_header_carries_is_told(browser: Browser) -> None:
    browser.driver.get(f"{browser.url}/health")
    browser.keep("key", "sesame\u200b")
    browser.driver.get(f"{browser.url}/ui")
    browser.until(lambda: "The API key has a character that" in browser.one("#state").text)
    browser.keep("key", "")


@pytest.mark.parametrize(
    ("name", "typed", "kept"),
    [
        ("stop", "4", "4"),
        ("stop", '["4"]', ["4"]),
        ("regex", "[0]", "[0]"),
        ("top_k", "4", 4),
        ("top_k", "many", "many"),
    ],
)
def test_a_text_needs_no_quotes(browser: Browser, name: str, typed: str, kept: Any) -> None:
    browser.open()
    browser.until(lambda: browser.all("#p-temperature"))
    browser.one("#open-settings").click()
    browser.run("document.querySelector('#settings details').open = true")
    browser.one(f"#p-{name}").send_keys(typed, Keys.TAB)
    assert browser.kept("settings")["values"] == {name: kept}
    assert ("wrong" in browser.one(f".field:has(#p-{name})").get_attribute("class")) == (typed == "many")  # type: ignore[operator]


def test_text_is_read_in_the_direction_of_its_script(browser: Browser) -> None:
    hebrew = "\u05e9\u05dc\u05d5\u05dd!"
    code = f"```\n# {hebrew}\n```"
    browser.open_conversation(question(hebrew), answered(f"{hebrew}\n\n- {hebrew}\n\nHello!\n\n{code}"), title=hebrew)
    browser.one("#prompt").send_keys(hebrew)
    direction = {
        selector: browser.run("return getComputedStyle(document.querySelector(arguments[0])).direction", selector)
        for selector in (
            "#prompt",
            ".turn.user .text",
            ".text > p",
            ".text > ul",
            ".text > p ~ p",
            ".code",
            "#talks .title",
        )
    }
    ltr = {".text > p ~ p", ".code"}
    assert direction == {selector: "ltr" if selector in ltr else "rtl" for selector in direction}


def test_a_server_that_goes_away_is_told(browser: Browser) -> None:
    browser.open()
    browser.driver.execute_cdp_cmd("Network.enable", {})
    offline: Mapping[str, Any] = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", dict(offline))
    try:
        browser.one("#prompt").send_keys("hi", Keys.ENTER)
        browser.until(lambda: browser.all(".trouble"))
        assert browser.one(".trouble").text == "The server cannot be reached."
    finally:
        browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
        browser.complaints()


def test_it_fits_a_phone(browser: Browser) -> None:
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        browser.open(settings=values(**GREEDY))
        browser.ask(QUESTION)
        widths = browser.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1] == 390
        assert not browser.one("#new").is_displayed()
        browser.one("#open-side").click()
        browser.until(lambda: browser.one("#new").is_displayed())
        browser.until(lambda: browser.one("#side").rect["x"] == 0)
        browser.one("#new").click()
        browser.until(lambda: not browser.one("#new").is_displayed())
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_keyboard_reaches_everything_and_nothing_is_nameless(browser: Browser) -> None:
    browser.open(settings=values(**GREEDY))
    browser.ask(QUESTION)
    nameless = browser.driver.execute_script(
        """return [...document.querySelectorAll("button, select, input, textarea")].filter(e =>
            !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
    )
    assert nameless == []
    reached = set()
    for _ in range(40):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.driver.execute_script("const e = document.activeElement; return e.id || e.textContent"))
    assert {
        "theme",
        "new",
        "model",
        "open-settings",
        "prompt",
        "send",
        "Copy",
        "Edit",
        "Regenerate",
        "Show as curl",
    } <= reached


@pytest.mark.parametrize("chosen", ["light", "dark"])
def test_light_and_dark(browser: Browser, chosen: str) -> None:
    browser.open(theme=chosen)
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 250, 248)", "dark": "rgb(21, 23, 26)"}[chosen]


def test_the_page_says_whose_answers_it_shows(browser: Browser) -> None:
    browser.open()
    host = browser.url.removeprefix("http://")
    assert browser.one(".welcome .quiet").text == f"Answered by {host}. What you type goes there and nowhere else."


def test_the_hint_of_temperature_says_what_0_does(browser: Browser) -> None:
    browser.open()
    browser.one("#open-settings").click()
    browser.until(lambda: browser.all("#p-temperature"))
    assert "0 takes the most likely token" in browser.one("#p-temperature-about").text

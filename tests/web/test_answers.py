"""What an answer shows beside its text: what gave it, its curl line, its alternatives, the probabilities of its tokens."""

import json
import math
import subprocess
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from starlette.testclient import TestClient

from tests.web.browser import Browser, answered, question, values

pytestmark = pytest.mark.browser
QUESTION = "How to explain Internet for a medieval knight?"
GREEDY = {"temperature": 0, "max_new_tokens": 12}


def completion(client: TestClient, **more: Any) -> Any:
    body = {"model": "tested", "messages": [{"role": "user", "content": QUESTION}], **more}
    return client.post("/v1/chat/completions", json=body).json()


def squeezed(text: str) -> str:
    return " ".join(text.split())


def set_value(browser: Browser, name: str, value: str) -> None:
    if not browser.one("#settings").is_displayed():
        browser.one("#open-settings").click()
    field = browser.until(lambda: browser.one(f"#p-{name}"))
    field.clear()
    field.send_keys(value, Keys.TAB)


def test_each_answer_says_what_gave_it_and_keeps_its_curl_line(browser: Browser) -> None:
    browser.open(settings={"system": "It's a 'test'.", "values": GREEDY})
    answer = browser.ask(QUESTION)
    assert browser.one(".made-by").text == "tested · temperature 0 · max_new_tokens 12 · system prompt"
    set_value(browser, "max_new_tokens", "5")  # of the next answer
    browser.one("#close-settings").click()
    browser.ask("And now?")
    assert [made.text for made in browser.all(".made-by")] == [
        "tested · temperature 0 · max_new_tokens 12 · system prompt",
        "tested · temperature 0 · max_new_tokens 5 · system prompt",
    ]
    browser.driver.refresh()
    browser.until(lambda: len(browser.all(".made-by")) == 2)
    browser.press("Show as curl", 1)
    line = browser.one("#curl pre").text
    assert '"max_new_tokens": 12' in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=60)
    assert squeezed(json.loads(done.stdout)["choices"][0]["message"]["content"]) == squeezed(answer)
    browser.one("#close-curl").click()
    browser.press("Show as curl", 3)
    line = browser.one("#curl pre").text
    assert '"max_new_tokens": 5' in line
    assert [
        message["role"] for message in json.loads(line.split("-d '")[1][:-1].replace("'\\''", "'"))["messages"]
    ] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_a_long_setting_is_shortened(browser: Browser) -> None:
    request = {"model": "tested", "system": "", "generate_kwargs": {"regex": "a" * 100}}
    browser.open_conversation(question(), answered("aaa", request=request))
    assert browser.one(".made-by").text == f"tested · regex {'a' * 40} …"


def test_beams_are_shown_side_by_side(browser: Browser, client: TestClient) -> None:
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8}
    expected = [c["message"]["content"] for c in completion(client, generate_kwargs=settings)["choices"]]
    assert len(set(expected)) == 3
    browser.open(settings=values(**settings))
    browser.ask(QUESTION)
    answers = browser.all(".answers.several .answer")
    assert [squeezed(a.find_element(By.CSS_SELECTOR, ".text").text) for a in answers] == [squeezed(e) for e in expected]
    assert [a.get_attribute("aria-label") for a in answers] == [f"Answer {n} of 3" for n in (1, 2, 3)]
    tops, lefts = {a.rect["y"] for a in answers}, [a.rect["x"] for a in answers]
    assert len(tops) == 1
    assert lefts == sorted(set(lefts))


def test_the_conversation_goes_on_with_the_answer_that_is_chosen(browser: Browser) -> None:
    browser.open(settings=values(num_return_sequences=3, seed=1, max_new_tokens=8))
    browser.ask(QUESTION)
    texts = [a.text for a in browser.all(".answer .text")]
    assert len(set(texts)) == 3
    picks = browser.all(".answer header button[aria-pressed]")
    assert [p.get_attribute("aria-pressed") for p in picks] == ["true", "false", "false"]
    picks[2].click()
    browser.until(lambda: browser.all(".answer.chosen .text")[0].text == texts[2])
    chosen = browser.one(".answer.chosen button")
    assert browser.driver.switch_to.active_element == chosen
    assert chosen.get_attribute("aria-pressed") == "true"
    browser.driver.refresh()
    browser.until(lambda: browser.all(".answer.chosen"))
    browser.ask("And?")
    browser.press("Show as curl")
    line = browser.one("#curl pre").text
    messages = json.loads(line.split("-d '")[1][:-1].replace("'\\''", "'"))["messages"]
    assert squeezed(messages[1]["content"]) == squeezed(texts[2])
    browser.one("#close-curl").click()
    earlier = browser.all(".turn.assistant")[0]
    assert "Choose" not in earlier.text  # what followed was an answer to the chosen one


def test_the_probability_of_each_token_is_shown(browser: Browser, client: TestClient) -> None:
    expected = completion(client, temperature=0, max_tokens=12, logprobs=True, top_logprobs=3)["choices"][0]
    tokens = expected["logprobs"]["content"]
    browser.open(settings=values(**GREEDY, top_logprobs=3))
    browser.ask(QUESTION)
    browser.press("Probabilities")
    shown = browser.all(".tokens .token")
    assert [browser.run("return arguments[0].textContent", t) for t in shown] == [t["token"] for t in tokens]
    ActionChains(browser.driver).move_to_element(shown[4]).perform()
    browser.until(lambda: browser.one("#token").is_displayed())
    rows = [row.text for row in browser.all("#token tr")]
    assert len(rows) == 3
    share = float(browser.one("#token .taken td + td").text.removesuffix(" %"))
    assert share == pytest.approx(100 * math.exp(tokens[4]["logprob"]), abs=0.1)
    box, token = browser.one("#token").rect, shown[4].rect
    assert abs(box["y"] - (token["y"] + token["height"])) < 12
    browser.one("#prompt").click()
    browser.press("Probabilities")
    assert not browser.all(".tokens")
    assert squeezed(browser.one(".turn.assistant .text").text) == squeezed(expected["message"]["content"])


def test_probabilities_are_reached_with_the_keyboard(browser: Browser) -> None:
    tokens = [["Yes", -0.1, [["Yes", -0.1], ["No", -3]]], [" it", -2, [["!", -1], [" that", -1.5]]], ["\n", -20, []]]
    turn = answered("Yes it\n")
    turn["answers"][0]["tokens"] = tokens
    browser.open_conversation(question(), turn)
    browser.press("Probabilities")
    browser.driver.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
    browser.run("document.querySelector('.tokens').focus()")
    view = browser.one(".tokens")
    view.send_keys(Keys.HOME)
    assert [row.text for row in browser.all("#token tr")] == ["Yes 90.5 %", "No 5.0 %"]
    view.send_keys(Keys.ARROW_RIGHT)
    assert [row.text for row in browser.all("#token tr")] == ["␣it 13.5 %", "! 36.8 %", "␣that 22.3 %"]
    view.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert [row.text for row in browser.all("#token tr")] == ["⏎ < 0.01 %"]
    view.send_keys(Keys.ESCAPE)
    assert not browser.one("#token").is_displayed()


def test_probabilities_with_beams_are_refused_in_words(browser: Browser) -> None:
    browser.open(settings=values(num_beams=2, top_logprobs=3, max_new_tokens=4))
    browser.one("#prompt").send_keys(QUESTION, Keys.ENTER)
    browser.until(lambda: browser.all(".trouble"))
    assert "top_logprobs" in browser.one(".trouble").text


def test_text_is_copied_also_where_the_browser_offers_no_clipboard(browser: Browser) -> None:
    """As on a page that came over plain HTTP from another machine."""
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    browser.open_conversation(question(), answered("An *answer*"))
    read = "clipboard.readText().then(arguments[0])"
    browser.run(
        "window.clipboard = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    )
    browser.press("Copy")
    browser.until(lambda: "Copied" in browser.all(".turn")[-1].text)
    assert browser.driver.execute_async_script(read) == "An *answer*"
    browser.press("Show as curl")
    browser.one("#copy-curl").click()
    browser.until(lambda: browser.one("#copy-curl").text == "Copied")
    assert browser.driver.execute_async_script(read) == browser.one("#curl pre").text

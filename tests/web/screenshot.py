"""The picture of the chat page in the README: ``python -m tests.web.screenshot [URL]``.

The script needs a running server with phi-3-tiny (``make serve``) and Chromium. It asks two questions and writes
``docs/images/chat-page.png``.
"""

import sys
from pathlib import Path

from selenium.webdriver import ActionChains

from tests.web.browser import Browser, start_chromium, values

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "chat-page.png"
QUESTIONS = ("What is a castle?", "347 + 285")
SIZE = (1180, 700)


def main(url: str = "http://127.0.0.1:8000") -> None:
    """Ask the questions greedily, point at the least likely token of the last answer, and save the picture."""
    driver = start_chromium()
    try:
        driver.set_window_size(*SIZE)
        browser = Browser(driver, url).open(settings=values(temperature=0, top_logprobs=4), theme="light")
        browser.until(lambda: browser.one("#state").get_attribute("data-state") == "ready", 60)
        for question in QUESTIONS:
            browser.ask(question)
        browser.press("Probabilities")
        least_likely = browser.run(
            """return [...document.querySelectorAll(".token")].reduce((one, other) =>
                 Number(other.style.getPropertyValue("--doubt")) > one.style.getPropertyValue("--doubt") ? other : one)"""
        )
        ActionChains(driver).move_to_element(least_likely).perform()
        PICTURE.parent.mkdir(exist_ok=True)
        driver.save_screenshot(str(PICTURE))
    finally:
        driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The picture of the chat page in the README: ``python -m tests.web.screenshot [URL]``.

The script needs a running server with phi-3-tiny (``make serve``) and Chromium. It asks two questions and writes
``docs/images/chat-page.png``.
"""

import json
import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "chat-page.png"
QUESTIONS = ("What is a castle?", "347 + 285")
SETTINGS = {"system": "", "values": {"temperature": 0}}
SECONDS = 60.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1180,700",
    "--hide-scrollbars",
)


def main(url: str = "http://127.0.0.1:8000") -> None:
    """Ask the questions greedily and save the picture."""
    driver = open_browser()
    try:
        driver.get(f"{url}/health")
        driver.execute_script("localStorage.setItem('phi3.settings', arguments[0])", json.dumps(SETTINGS))
        driver.execute_script("localStorage.setItem('phi3.theme', '\"light\"')")
        driver.get(f"{url}/ui")
        WebDriverWait(driver, SECONDS).until(
            lambda d: d.find_element(By.ID, "state").get_attribute("data-state") == "ready"
        )
        for number, question in enumerate(QUESTIONS, 1):
            ask(driver, question, number)
        PICTURE.parent.mkdir(exist_ok=True)
        driver.save_screenshot(str(PICTURE))
    finally:
        driver.quit()


def open_browser() -> webdriver.Chrome:
    """Chromium without a window, in the light theme."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def ask(driver: webdriver.Chrome, question: str, number: int) -> None:
    """Send ``question`` and wait for the whole answer, the ``number``-th of the conversation."""
    driver.find_element(By.ID, "prompt").send_keys(question, Keys.ENTER)

    def is_answered(_: object) -> bool:
        answers = driver.find_elements(By.CSS_SELECTOR, ".turn.assistant")
        return len(answers) == number and bool(answers[-1].find_elements(By.CSS_SELECTOR, ".figures"))

    WebDriverWait(driver, SECONDS, 0.05).until(is_answered)


if __name__ == "__main__":
    main(*sys.argv[1:])

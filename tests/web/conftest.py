"""One Chromium and one server for all tests of the page."""

from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.web.browser import CHROMIUM, DRIVER, SIZE, Browser, start_chromium


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver: webdriver.Chrome, server_url: str) -> Browser:
    driver.set_window_size(*SIZE)
    return Browser(driver, server_url)

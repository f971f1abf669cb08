"""What axe-core finds wrong on the page: nothing, in light, in the dark and on a phone."""

import pytest

from tests.web.browser import Browser, answered, question

pytestmark = pytest.mark.browser
TEXT = r"""# Title

## Section

A [link](https://example.com), `code`, $a^2$ and

$$\sum_i x_i$$

- [x] done
- [ ] open

| a | b |
|---|---|
| 1 | 2 |

```python
@cached
class A(B):
    '''A text'''
    def f(self, x: int = 1) -> str:
        return f"{x}" + True  # a comment
```
"""
TURNS = [
    question(),
    answered(TEXT),
    question(),
    answered("One", "Two", "Three"),
    question(),
    answered("", trouble="It failed."),
]


def with_tokens() -> dict[str, object]:
    turn = answered("Yes it is")
    turn["answers"][0]["tokens"] = [["Yes", -0.1, [["Yes", -0.1]]], [" it", -2, []], [" is", -9, []]]
    return turn


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, theme: str, width: int) -> None:
    browser.driver.set_window_size(1280, 860)
    if width < 500:  # a window cannot be as narrow
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 780, "deviceScaleFactor": 2, "mobile": True},
        )
    try:
        browser.open_conversation(*TURNS, question(), with_tokens(), theme=theme)
        browser.until(lambda: len(browser.all(".katex")) == 2)
        browser.until(lambda: browser.all("#p-temperature"))
        assert browser.violations() == []
        browser.press("Probabilities")
        browser.run("document.querySelector('.tokens').focus()")
        browser.one("#open-settings").click()
        browser.run("document.querySelector('details').open = true")
        assert browser.violations() == []
        browser.one("#close-settings").click()
        if width < 500:
            browser.one("#open-side").click()
            browser.until(lambda: browser.one("#side").rect["x"] == 0)
        browser.menu("Rename")
        assert browser.violations() == []
        browser.run("document.activeElement.blur()")
        browser.menu("Delete")
        assert browser.violations() == []
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_axe_finds_what_is_wrong(browser: Browser) -> None:
    browser.open()
    browser.run(
        "document.querySelector('label[for=prompt]').remove(); document.querySelector('#prompt').placeholder = ''"
    )
    assert any(violation.startswith("label:") for violation in browser.violations())

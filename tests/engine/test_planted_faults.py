"""The faults of ``planted_faults`` can be planted, and a few of them are noticed. ``make planted-faults`` plants all."""

import subprocess
import sys

import pytest

from tests.engine.planted_faults import FAULTS, ROOT, Fault, planted

FEW = ("the window is forgotten", "a graph is captured over another buffer")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_place_of_a_fault_is_there(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text()
    assert planted(fault, text) != text
    assert all((ROOT / tests.split("::")[0]).exists() for tests in fault.noticed_by)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_few_faults_are_noticed() -> None:
    command = [sys.executable, "-m", "tests.engine.planted_faults", *FEW]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert result.stdout.endswith("2 faults, 0 times unnoticed\n"), result.stdout + result.stderr
    assert result.stdout.count(": noticed by tests/engine/model/") == 2

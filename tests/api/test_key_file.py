"""API keys in a file, which changes while the server runs."""

from pathlib import Path

import pytest

from phi3_serve.api.key_file import KeyFileError
from phi3_serve.api.keys import ApiKeys, hash_of
from phi3_serve.config.api_keys import AuthConfig


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def keys_of(path: Path, clock: Clock, **auth: object) -> ApiKeys:
    return ApiKeys(AuthConfig.model_validate({"file": str(path), **auth}), clock)


def test_a_changed_file_replaces_its_keys_and_keeps_those_of_the_config(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.yaml", Clock()
    file.write_text(f"key_hashes: [{hash_of('old')}]")
    keys = keys_of(file, clock, key_hashes=[hash_of("fixed")])
    assert keys.of_headers(bearer("old")) is not None

    # as Kubernetes does it: a link to another file
    (tmp_path / "new.yaml").write_text(f"keys: [{{name: alice, hash: {hash_of('new')}}}]")
    file.unlink()
    file.symlink_to(tmp_path / "new.yaml")
    clock.now = 4
    assert keys.of_headers(bearer("new")) is None  # it was looked at four seconds ago
    clock.now = 6
    found = keys.of_headers(bearer("new"))
    assert found is not None
    assert found.name == "alice"
    assert keys.of_headers(bearer("old")) is None
    assert keys.of_headers(bearer("fixed")) is not None


def test_a_file_that_breaks_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, clock = tmp_path / "keys.yaml", Clock()
    file.write_text(f"key_hashes: [{hash_of('old')}]")
    keys = keys_of(file, clock)
    file.write_text("key_hashes: [short]")
    clock.now = 6
    assert keys.of_headers(bearer("old")) is not None
    assert f"auth.file: {file}: the file: key_hashes[0] must be 64 hexadecimal digits" in caplog.text
    file.unlink()
    clock.now = 12
    assert keys.of_headers(bearer("old")) is not None


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").touch()
    assert keys_of(tmp_path / "keys.yaml", Clock()).are_required


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("[", "is not YAML: "),
        ("keys: []\nkeys: []", "is not YAML: the key `keys` is in line 1 and again in line 2"),
        ("key_hashs: []", "unknown key `key_hashs`; did you mean `key_hashes`?"),
        ("file: /other", "file: must not name another file"),
        (f"key_hashes: [{hash_of('fixed')}]", "with the keys of the config, two API keys have the name"),
    ],
)
def test_a_wrong_file_is_told_at_the_start(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "keys.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KeyFileError) as error:
        keys_of(file, Clock(), key_hashes=[hash_of("fixed")])
    assert error.value.message.startswith(f"auth.file: {file}: ")
    assert message in error.value.message

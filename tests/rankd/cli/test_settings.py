from pathlib import Path

import pytest

from rankd.cli.settings import find_file, find_keys


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; the user's own settings lie in `home` beside it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "rankd").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def write(path: Path, mode: int = 0o644) -> Path:
    path.write_text("")
    path.chmod(mode)
    return path


def found(given: str | None = None) -> tuple[Path | None, list[str]]:
    """The file that is read, and the warnings."""
    warnings: list[str] = []
    return find_file(given, warnings.append), warnings


def test_the_nearest_file_is_read(here: Path) -> None:
    assert found() == (None, [])
    own = write(here.parent / "home" / "rankd" / "rankd.toml")
    assert found() == (own, [])
    write(here / "rankd.toml")
    assert found() == (Path("rankd.toml"), [])
    assert found("other.toml") == (Path("other.toml"), []), "one that was named must be there; reading says so"
    assert found("off") == (None, [])


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_to_is_not_used(here: Path, mode: int) -> None:
    own = write(here.parent / "home" / "rankd" / "rankd.toml")
    write(here / "rankd.toml", mode)
    file, warnings = found()
    assert file == own and len(warnings) == 1
    assert f"{here}/rankd.toml is not used: it has mode {mode:04o}, others can write to it" in warnings[0]


def test_a_file_of_another_user_is_not_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = write(here / "rankd.toml").stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    file, warnings = found()
    assert (file, len(warnings)) == ((Path("rankd.toml"), 0) if owner == 0 else (None, 1))


def test_what_is_no_file_is_not_used(here: Path) -> None:
    (here / "rankd.toml").mkdir()
    file, warnings = found()
    assert file is None and warnings[0].endswith("it is no regular file")


def test_the_users_own_keyring_counts(here: Path) -> None:
    from rankd.auth import Keyring

    assert find_keys({}) == {}
    own = here.parent / "home" / "rankd" / "keys"
    Keyring(own).create()
    assert find_keys({"http": "off"}) == {"http": "off", "keys": own}
    other = here / "keys"
    Keyring(other).create()
    assert find_keys({"keys": str(other)}) == {"keys": str(other)}

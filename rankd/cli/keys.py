"""`rankd keys`: who may come by TCP. None of these prints a secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave, print_json
from rankd_client.text import escape

if TYPE_CHECKING:
    from rankd.auth import Grant, Keyring
    from rankd.quota import Quota

T = TypeVar("T")
WHERE = "rankd keys"
"""Where a wrong name or limit stands that stands in no file."""

keys = typer.Typer(
    help="Make, list and revoke the keys that a daemon on TCP asks for. No daemon needs to run; one that does notices.",
    no_args_is_help=True,
)

KeysDirectory = Annotated[
    Path | None,
    typer.Option("--keys", envvar="RANKD_KEYS", help="The keyring.  \\[default: ~/.config/rankd/keys]"),
]
Namespace = Annotated[str | None, typer.Option(help="Whose runs are its own and apart from those of others.")]
Rights = Annotated[str, typer.Option(help="Some of push,subscribe,admin; admin is everything, everywhere.")]
MaxRuns = Annotated[int | None, typer.Option(help="Runs of its namespace at a time.")]
MaxBytes = Annotated[int | None, typer.Option(help="Bytes in memory of its namespace.")]
MaxDiskBytes = Annotated[int | None, typer.Option(help="Bytes of history of its namespace.")]


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the key: a person, a team, a host.")],
    namespace: Namespace = None,
    rights: Rights = "push,subscribe",
    max_runs: MaxRuns = None,
    max_bytes: MaxBytes = None,
    max_disk_bytes: MaxDiskBytes = None,
    output: Annotated[Path | None, typer.Option("-o", help="The key file.  \\[default: NAME.key]")] = None,
    unauthorized: Annotated[bool, typer.Option("--unauthorized", help="Only make NAME.key and NAME.pub.")] = False,
    server: Annotated[Path | None, typer.Option(help="server.pub of the daemon, with --unauthorized.")] = None,
    directory: KeysDirectory = None,
) -> None:
    """Make a key and authorize it; the daemon's own pair too, the first time. With --unauthorized, for a daemon of
    somebody else: NAME.pub goes there, and NAME.key stays."""
    path = output or Path(f"{name}.key")
    if unauthorized != (server is not None):
        leave("--unauthorized and --server SERVER.pub go together", WRONG_USE)
    if server is not None:
        _guarded(lambda: _make_unauthorized(path, name, namespace or "", server))
        return

    def make() -> None:
        grant_of = _grant_maker(name, namespace or "", rights, _quota(max_runs, max_bytes, max_disk_bytes))
        _make(_keyring(directory), path, grant_of)

    _guarded(make)


@keys.command()
def authorize(
    file: Annotated[Path, typer.Argument(help="NAME.pub, made with --unauthorized.")],
    namespace: Namespace = None,
    rights: Rights = "push,subscribe",
    max_runs: MaxRuns = None,
    max_bytes: MaxBytes = None,
    max_disk_bytes: MaxDiskBytes = None,
    directory: KeysDirectory = None,
) -> None:
    """Allow a key whose secret half stays with its owner."""

    def allow() -> None:
        from rankd.auth.keyfiles import read_public

        name, wanted, public = read_public(file)
        if namespace is not None and namespace != wanted:
            leave(
                f"{str(file)!r} was made for the namespace {wanted!r}, which its owner's key file says too; for "
                f"{namespace!r} he makes it anew with --namespace",
                WRONG_USE,
            )
        grant_of = _grant_maker(name, wanted, rights, _quota(max_runs, max_bytes, max_disk_bytes))
        keyring = _keyring(directory)
        keyring.create()
        keyring.authorize(grant_of(public))
        print(f"authorized {_described(grant_of(public))}")

    _guarded(allow)


@keys.command(name="list")
def list_(
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    directory: KeysDirectory = None,
) -> None:
    """Show the keys that are authorized. Exits with 1 where one cannot be used."""
    from rankd_client.keys import KeyFileError

    keyring, broken = _keyring(directory), 0
    for name in _guarded(keyring.names):
        try:
            grant, since = keyring.grant(name)
        except KeyFileError as error:
            broken += 1
            _show({"name": name, "error": str(error)}, f"{name}: {error}; it grants nothing", json_lines)
        else:
            _show(_row(grant, since), f"{_described(grant)}, since {since}", json_lines)
    if broken:
        raise typer.Exit(PROBLEM)


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(help="As `keys list` shows it.")], directory: KeysDirectory = None
) -> None:
    """Forbid a key. A daemon that runs cuts its connections off within two seconds."""
    if not _guarded(lambda: _keyring(directory).revoke(name)):
        leave(f"no key {name!r} is authorized; `rankd keys list` shows those that are", PROBLEM)
    print(f"revoked {name}")


def _guarded(action: Callable[[], T]) -> T:
    from rankd_client.keys import KeyFileError

    try:
        return action()
    except KeyFileError as error:
        leave(escape(str(error)), PROBLEM if isinstance(error.__cause__, OSError) else WRONG_USE)


def _keyring(directory: Path | None) -> Keyring:
    from rankd.auth import Keyring, default_directory

    return Keyring(directory or default_directory())


def _quota(max_runs: int | None, max_bytes: int | None, max_disk_bytes: int | None) -> Quota:
    from rankd.auth.keyring import check_quota

    limits = {"max_runs": max_runs, "max_bytes": max_bytes, "max_disk_bytes": max_disk_bytes}
    return check_quota(WHERE, limits)


def _grant_maker(name: str, namespace: str, rights: str, quota: Quota) -> Callable[[str], Grant]:
    """Checked, but for the public key, before anything is written."""
    from rankd.auth import Grant
    from rankd.auth.keyring import check_rights
    from rankd_client.keys import check_name, check_namespace

    name, namespace = check_name(WHERE, name), check_namespace(WHERE, namespace)
    checked = check_rights(WHERE, [right.strip() for right in rights.split(",")])
    return lambda public: Grant(name, public, namespace, checked, quota)


def _make(keyring: Keyring, path: Path, grant_of: Callable[[str], Grant]) -> None:
    from rankd.auth.keyfiles import write_key
    from rankd.auth.keyring import new_pair

    if path.is_symlink() or path.exists():
        leave(f"{str(path)!r} is there already; -o FILE writes another", WRONG_USE)
    if keyring.create():
        print(f"made a keyring for the daemon in {keyring.directory}; `rankd serve --keys {keyring.directory}` uses it")
    server, _ = keyring.server()
    public, secret = new_pair()
    grant = grant_of(public)
    keyring.authorize(grant)
    try:
        write_key(path, grant.name, grant.namespace, public, secret, server)
    except BaseException:  # nobody has the key that was just authorized
        keyring.revoke(grant.name)
        raise
    print(f"authorized {_described(grant)}")
    print(f"its holder sets RANKD_KEY={Path.cwd() / path}: a secret, to be moved as one")


def _make_unauthorized(path: Path, name: str, namespace: str, server: Path) -> None:
    from rankd.auth.keyfiles import read_server, write_key, write_public
    from rankd.auth.keyring import new_pair
    from rankd_client.keys import check_name, check_namespace

    name, namespace = check_name(WHERE, name), check_namespace(WHERE, namespace)
    server_public = read_server(server)
    public, secret = new_pair()
    write_public(path.with_suffix(".pub"), name, namespace, public)
    try:
        write_key(path, name, namespace, public, secret, server_public)
    except BaseException:  # a public key that nobody has the secret of
        path.with_suffix(".pub").unlink()
        raise
    print(f"made {path}, which stays here, and {path.with_suffix('.pub')}, to be authorized by whoever runs the daemon")


def _described(grant: Grant) -> str:
    limits = [f"{key}={value}" for key, value in _limits(grant).items() if value is not None]
    where = f" in namespace {grant.namespace}" if grant.namespace else ""
    return " ".join([f"{grant.name}: {','.join(sorted(grant.rights))}{where}", *limits])


def _limits(grant: Grant) -> dict[str, int | None]:
    quota = grant.quota
    return {"max_runs": quota.max_runs, "max_bytes": quota.max_bytes, "max_disk_bytes": quota.max_disk_bytes}


def _row(grant: Grant, since: str) -> dict[str, Any]:
    row = {"name": grant.name, "public": grant.public_key, "namespace": grant.namespace}
    return {**row, "rights": sorted(grant.rights), "quota": _limits(grant), "since": since}


def _show(row: dict[str, Any], line: str, json_lines: bool) -> None:
    if json_lines:
        print_json(row)
    else:
        print(escape(line))

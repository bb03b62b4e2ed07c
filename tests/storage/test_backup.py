"""A backup is of one moment, whole or not there, and put back whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import pytest
import trio

from aether_trio.gateway.databases import open_databases
from aether_trio.storage import data_dir_lock
from aether_trio.storage.backup import BackupError, archive, back_up, restore, streams
from aether_trio.storage.backup.archive import PARTIAL
from aether_trio.storage.backup.manifest import DATABASE_FILES, MANIFEST_FILE
from aether_trio.storage.base import Execute, Program
from aether_trio.storage.data_dir_lock import (
    BACKUP_FILE,
    LOCK_FILE,
    lock_directory,
    reading_for_backup,
    without_backups,
)
from aether_trio.storage.errors import DirectoryInUseError, StorageSetupError
from aether_trio.storage.sqlite import snapshot
from aether_trio.storage.sqlite.data_files import DATABASES, RESTORING_FILE, complete_files
from aether_trio.storage.sqlite.snapshot import open_snapshots
from aether_trio.storage.sqlite.wal import LIMIT_BYTES, WriteAheadLog
from tests.helpers.core import settings_for_tests

LOCKS = {LOCK_FILE, BACKUP_FILE}
FORMS = ("backup", "backup.tar", "backup.tar.gz", "backup.tar.zst")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The databases of a gateway, with some rows."""
    directory = tmp_path_factory.mktemp("used") / "data"

    async def make() -> None:
        settings = settings_for_tests(gateway={"ephemeral": False, "data_dir": str(directory)})
        async with open_databases(settings) as databases:
            await databases.log.execute("INSERT INTO log_identity (id, identity) VALUES (1, $1)", b"the old log")
            await databases.log.executemany("INSERT INTO topics (name) VALUES ($1)", [(f"t{n}",) for n in range(5000)])

    trio.run(make)
    return directory


def made(data: Path, target: Path) -> Path:
    back_up(data, str(target), made_by="a test")
    return target


def rows(file: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize("form", FORMS)
def test_what_was_backed_up_is_put_back(data: Path, tmp_path: Path, form: str) -> None:
    before = os.umask(0)
    try:
        target = made(data, tmp_path / form)
        done = restore(str(target), tmp_path / "restored")
    finally:
        os.umask(before)
    assert rows(tmp_path / "restored" / "log.db", "SELECT count(*), max(name) FROM topics") == [(5000, "t999")]
    assert done.manifest.made_by == "a test"
    assert {entry.file for entry in done.manifest.databases} == set(DATABASE_FILES)
    assert all(entry.schema_version > 0 for entry in done.manifest.databases)
    files = [*(target.iterdir() if target.is_dir() else [target]), *(tmp_path / "restored").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert {file.name for file in (tmp_path / "restored").iterdir()} == {
        *DATABASE_FILES,
        *LOCKS,
    }
    # The gateway on it makes a new one (tests/gateway/test_restored.py).
    assert rows(tmp_path / "restored" / "log.db", "SELECT * FROM log_identity") == []
    assert rows(data / "log.db", "SELECT identity FROM log_identity") == [(b"the old log",)]


def test_a_stream_is_whole_by_its_last_file(data: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    back_up(data, "-", made_by="a test", stdout=stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as one:
        assert one.getnames() == ["state.db", "log.db", "tasks.db", MANIFEST_FILE]
    for size in (0, 100, 20_000, len(stream.getvalue()) - 20_000):
        with pytest.raises(BackupError, match=r"cut off|no whole backup"):
            restore("-", tmp_path / "restored", stdin=io.BytesIO(stream.getvalue()[:size]))
        assert {file.name for file in (tmp_path / "restored").iterdir()} == LOCKS
    stream.seek(0)
    restore("-", tmp_path / "restored", stdin=stream)


def test_a_reader_that_takes_nothing_ends_the_backup(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its end the write-ahead logs grow."""
    monkeypatch.setattr(streams, "STALL_S", 0.01)
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as stdout, pytest.raises(TimeoutError, match="nothing has read the backup"):
            back_up(data, "-", made_by="a test", stdout=stdout, scratch=tmp_path)
    finally:
        os.close(reading)
    assert list(tmp_path.iterdir()) == []


def test_what_a_broken_off_archive_buffers_is_not_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader may be the one for which a stopped backup would wait."""
    monkeypatch.setattr(streams, "STALL_S", 0.01)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(65_536))
    try:
        with (
            os.fdopen(writing, "wb") as stdout,
            pytest.raises(SystemExit),
            archive._writer("-", stdout, tmp_path) as one,
        ):
            (one.directory / "small").write_bytes(b"buffered")
            one.add(one.directory / "small")
            raise SystemExit(143)
    finally:
        os.close(reading)
    assert list(tmp_path.iterdir()) == []


class Writers:
    """Commits n to state.db, then to log.db, then to tasks.db, over and over."""

    def __init__(self, directory: Path) -> None:
        self.files = {name: directory / f"{name}.db" for name in DATABASES}
        self.failures: list[Exception] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()

    async def _run(self) -> None:
        directory = str(self.files["log"].parent)
        settings = settings_for_tests(
            gateway={"ephemeral": False, "data_dir": directory}, storage={"synchronous": "normal"}
        )
        async with open_databases(settings) as databases:
            number = 0
            while not self._ending.is_set():
                number += 1
                try:
                    for database in (databases.state, databases.log, databases.tasks):
                        await database.run_small(lambda n=number: _write(n))  # type: ignore[misc]
                except Exception as error:
                    self.failures.append(error)
                    return


def _write(number: int) -> Program[None]:
    yield Execute("CREATE TABLE IF NOT EXISTS probe (n INTEGER)")
    yield Execute("DELETE FROM probe")
    yield Execute("INSERT INTO probe VALUES ($1)", (number,))


def test_all_databases_are_of_one_moment_and_no_write_is_refused(tmp_path: Path) -> None:
    seen = []
    with Writers(tmp_path) as writers:
        # Until it has seen many moments: the writers may be slow.
        while (len(seen) < 200 or len(set(seen)) <= 50) and not writers.failures:
            if not all(file.exists() for file in writers.files.values()):
                continue
            try:
                with open_snapshots(writers.files) as snapshots:
                    ask = "SELECT max(n) FROM probe"
                    found = [snapshots.connections[name].execute(ask).fetchone()[0] for name in DATABASES]
            except (sqlite3.OperationalError, StorageSetupError):  # they are being made
                assert not seen
                continue
            state, log, tasks = found
            assert state >= log >= tasks >= state - 1, found
            seen.append(tuple(found))
    assert writers.failures == []


def test_a_gateway_that_commits_one_after_another_is_torn_without_the_locks(tmp_path: Path) -> None:
    """So the test above shows something."""
    torn = 0
    with Writers(tmp_path) as writers:
        while not torn and not writers.failures:
            found = []
            for name in reversed(DATABASES):  # tasks first: the others are newer then
                try:
                    found += rows(writers.files[name], "SELECT max(n) FROM probe")[0]
                except sqlite3.Error:
                    break
            if len(found) == 3 and all(isinstance(one, int) for one in found):
                torn += int(str(found[2])) > int(str(found[0])) + 1
    assert torn


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_under_its_name_is_whole(
    data: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that fails at any point leaves nothing."""
    for point in ("copy_snapshot", "sha256_of"):

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
            patched.setattr(archive, point, fails)
            back_up(data, str(tmp_path / form), made_by="a test")
        assert list(tmp_path.iterdir()) == []
    made(data, tmp_path / form)
    assert [path.name for path in tmp_path.iterdir()] == [form]
    assert PARTIAL not in form


@pytest.mark.parametrize("form", FORMS)
def test_a_backup_replaces_nothing(data: Path, tmp_path: Path, form: str) -> None:
    made(data, tmp_path / form)
    with pytest.raises(BackupError, match="exists, and is left as it is"):
        back_up(data, str(tmp_path / form), made_by="a test")
    with pytest.raises(BackupError, match="there is no directory"):
        back_up(data, str(tmp_path / "none" / form), made_by="a test")
    restore(str(tmp_path / form), tmp_path / "restored")


def test_an_empty_directory_is_filled(data: Path, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    made(data, tmp_path / "backup")


@pytest.mark.parametrize("name", DATABASE_FILES)
def test_no_data_no_backup(data: Path, tmp_path: Path, name: str) -> None:
    for file in DATABASE_FILES:
        if file != name:
            (tmp_path / file).write_bytes((data / file).read_bytes())
    with pytest.raises(BackupError, match=f"no gateway's data in .*: {name} missing"):
        back_up(tmp_path, str(tmp_path / "backup"), made_by="a test")
    assert not (tmp_path / name).exists()


def test_a_damaged_database_is_not_backed_up(data: Path, tmp_path: Path) -> None:
    for file in DATABASE_FILES:
        (tmp_path / file).write_bytes((data / file).read_bytes())
    content = bytearray((tmp_path / "log.db").read_bytes())
    content[4096 * 20 : 4096 * 22] = b"\xff" * 8192
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises((BackupError, StorageSetupError), match=r"damaged|malformed"):
        back_up(tmp_path, str(tmp_path / "backup"), made_by="a test")
    assert not (tmp_path / "backup").exists()


def _damages(backup: Path) -> Iterator[tuple[str, str]]:
    log, manifest = backup / "log.db", backup / MANIFEST_FILE
    content = bytearray(log.read_bytes())
    content[50_000] ^= 1
    log.write_bytes(content)
    yield "damaged: log.db has not the checksum", "a bit"
    log.write_bytes(content[:-1])
    yield "damaged: log.db has not the checksum", "its end"
    log.unlink()
    yield "no whole backup: log.db is missing", "a file"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, "format": 2}))
    yield "has format 2, and this release reads format 1", "its format"
    manifest.write_text(json.dumps({**text, "databases": []}))
    yield "its manifest does not name the files", "what it names"
    manifest.write_text("{")
    yield "cannot be read", "its manifest"
    manifest.unlink()
    yield "no whole backup: it has no aether-backup.json", "its manifest"


def test_a_damaged_backup_changes_nothing(data: Path, tmp_path: Path) -> None:
    backup, target = made(data, tmp_path / "backup"), tmp_path / "restored"
    restore(str(made(data, tmp_path / "good")), target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for text, _what in _damages(backup):
        with pytest.raises(BackupError, match=text):
            restore(str(backup), target, force=True)
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_an_archive_of_others_writes_nowhere(tmp_path: Path) -> None:
    for name, kind in (("../log.db", tarfile.REGTYPE), ("log.db", tarfile.SYMTYPE), ("other", tarfile.REGTYPE)):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "bad.tar", "w") as bad:
            bad.addfile(member, io.BytesIO())
        with pytest.raises(BackupError, match=r"does not belong|no file"):
            restore(str(tmp_path / "bad.tar"), tmp_path / "restored")
    assert not (tmp_path / "log.db").exists()
    assert {file.name for file in (tmp_path / "restored").iterdir()} == LOCKS


def _header(kind: bytes, size: int, name: str = "x") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.USTAR_FORMAT)


def _extended(text: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return _header(kind, len(text)) + text.ljust(512, b"\0")


@pytest.mark.parametrize(
    "before",
    [
        _extended(b"99999999999999999999 a=b\n"),
        _extended(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
        _extended(b"30 GNU.sparse.map=a,b,c,d,e,f\n"),
        _extended(b"25 GNU.sparse.size=zzzzz\n"),
        _header(tarfile.GNUTYPE_LONGNAME, 600 * 1024 * 1024),
        _header(tarfile.XHDTYPE, 600 * 1024 * 1024),
        _header(tarfile.GNUTYPE_SPARSE, 0, "state.db"),
        _header(tarfile.FIFOTYPE, 0, "state.db"),
        _header(tarfile.CHRTYPE, 0, "state.db"),
    ],
    ids=range(9),
)
def test_headers_that_make_no_sense_are_refused(data: Path, tmp_path: Path, before: bytes) -> None:
    good = made(data, tmp_path / "good.tar").read_bytes()
    (tmp_path / "bad.tar").write_bytes(before + good)
    with pytest.raises(BackupError, match=r"cannot be read|is no file|no whole backup|does not belong"):
        restore(str(tmp_path / "bad.tar"), tmp_path / "restored")
    assert {file.name for file in (tmp_path / "restored").iterdir()} == LOCKS


def test_a_long_name_is_not_read_into_memory(data: Path, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bad.tar.gz", "wb", 1) as bad:
        bad.write(_header(tarfile.GNUTYPE_LONGNAME, 2**32))
        bad.write(b"a" * 1024 * 1024)
    with pytest.raises(BackupError, match="a header has 4294967296 bytes"):
        restore(str(tmp_path / "bad.tar.gz"), tmp_path / "restored")


def test_a_backup_whose_files_are_no_files_is_refused(data: Path, tmp_path: Path) -> None:
    backup = made(data, tmp_path / "backup")
    for other in ("/dev/zero", str(tmp_path / "fifo")):
        (backup / "log.db").unlink()
        (backup / "log.db").symlink_to(other)
        if not Path(other).exists():
            os.mkfifo(other)
        with pytest.raises(BackupError, match=r"log.db is no file"):
            restore(str(backup), tmp_path / "restored")


def test_a_directory_of_others_is_not_taken_for_what_a_restore_has_left(data: Path, tmp_path: Path) -> None:
    backup, target = made(data, tmp_path / "backup"), tmp_path / "restored"
    (target / "restoring-photos").mkdir(parents=True)
    (target / "restoring-photos" / "one.jpg").write_bytes(b"mine")
    (target / "restoring-notes").write_text("mine")
    with pytest.raises(BackupError, match="is not empty"):
        restore(str(backup), target)
    restore(str(backup), target, force=True)
    assert (target / "restoring-photos" / "one.jpg").read_bytes() == b"mine"
    assert (target / "restoring-notes").read_text() == "mine"


def test_nothing_is_put_back_while_a_backup_reads(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the backup could have an old log beside new tasks."""
    backup, target = made(data, tmp_path / "backup"), tmp_path / "restored"
    restore(str(backup), target)
    with reading_for_backup(target), pytest.raises(DirectoryInUseError, match="a backup is being made of"):
        restore(str(backup), target, force=True)
    monkeypatch.setattr(data_dir_lock, "PATIENCE_S", 0.0)
    with without_backups(target), pytest.raises(DirectoryInUseError, match="is being put back into"):
        back_up(target, str(tmp_path / "other"), made_by="a test")
    (target / RESTORING_FILE).touch()
    with pytest.raises(BackupError, match="was interrupted: run `aether restore` again"):
        back_up(target, str(tmp_path / "other"), made_by="a test")
    assert not (tmp_path / "other").exists()


def test_a_link_is_not_filled(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "backup").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackupError, match="exists, and is left as it is"):
        back_up(data, str(tmp_path / "backup"), made_by="a test")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", [LOCK_FILE, BACKUP_FILE])
def test_a_lock_that_is_a_link_leads_nowhere(data: Path, tmp_path: Path, name: str) -> None:
    """A gateway's user could have its link followed by root."""
    backup, target = made(data, tmp_path / "backup"), tmp_path / "target"
    target.mkdir()
    (target / name).symlink_to(tmp_path / "made")
    with pytest.raises((StorageSetupError, OSError), match="symbolic links"):
        restore(str(backup), target)
    assert not (tmp_path / "made").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_makes_belongs_to_the_gateways_user(data: Path, tmp_path: Path) -> None:
    backup, target = made(data, tmp_path / "backup"), tmp_path / "target"
    target.mkdir()
    os.chown(target, 65534, 65534)
    restore(str(backup), target)
    back_up(target, str(tmp_path / "again"), made_by="a test")
    assert {(file.stat().st_uid, file.stat().st_gid) for file in target.iterdir()} == {(65534, 65534)}
    assert (tmp_path / "again").stat().st_uid == 0


def test_a_lock_that_others_keep_is_asked_for_less_and_less(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's writers to the other files wait while it is asked for."""
    restore(str(made(data, tmp_path / "backup")), tmp_path / "data")
    files = {name: tmp_path / "data" / f"{name}.db" for name in ("log", "tasks", "state")}
    holder = sqlite3.connect(files["state"], isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds == snapshot.POLL_S:
            return
        log = sqlite3.connect(files["log"], isolation_level=None, timeout=0.0)
        log.execute("BEGIN IMMEDIATE")
        log.close()
        pauses.append(seconds)
        if len(pauses) == 9:
            holder.execute("ROLLBACK")

    monkeypatch.setattr(snapshot, "HOLD_S", 0.001)
    monkeypatch.setattr(snapshot.time, "sleep", sleep)
    with open_snapshots(files):
        pass
    holder.close()
    assert len(pauses) == 9
    assert pauses[0] < 2 * snapshot.PAUSE_S
    assert min(pauses[6:]) >= 0.75 * snapshot.MAX_PAUSE_S


def test_a_terminal_does_not_stop_a_backup_that_has_locks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocked() -> bool:
        return {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())

    give_back, seen = snapshot._give_back, []

    def watched(lockers: dict[str, sqlite3.Connection]) -> None:
        seen.append(blocked())
        give_back(lockers)

    monkeypatch.setattr(snapshot, "_give_back", watched)
    made(data, tmp_path / "backup")
    assert seen == [True]
    assert not blocked()


def test_data_that_is_there_is_moved_aside_on_demand_alone(data: Path, tmp_path: Path) -> None:
    backup, target = made(data, tmp_path / "backup"), tmp_path / "restored"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(BackupError, match=r"is not empty \(notes.txt\)"):
        restore(str(backup), target)
    (target / "notes.txt").unlink()
    restore(str(backup), target)
    for name in ("audit.key", "log.db-wal", "log.db-shm"):
        (target / name).write_bytes(b"old")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(BackupError, match="has a gateway's data"):
        restore(str(backup), target)
    done = restore(str(backup), target, force=True)
    assert done.aside is not None
    assert {path.name for path in done.aside.iterdir()} == {*DATABASE_FILES, "audit.key", "log.db-wal", "log.db-shm"}
    assert {path.name for path in target.iterdir()} == {*DATABASE_FILES, *LOCKS, "notes.txt", done.aside.name}


def test_a_directory_that_is_in_use_is_refused(data: Path, tmp_path: Path) -> None:
    backup = made(data, tmp_path / "backup")
    with lock_directory(tmp_path / "restored"), pytest.raises(DirectoryInUseError):
        restore(str(backup), tmp_path / "restored", force=True)


INTERRUPTED = """
import os, sys
from pathlib import Path
from aether_trio.storage.backup import restore
steps = [int(sys.argv[1])]
def dying(call):
    def step(*args, **kwargs):
        if steps[0] == 0:
            os.kill(os.getpid(), 9)
        steps[0] -= 1
        return call(*args, **kwargs)
    return step
for name in ("rename", "unlink"):
    setattr(Path, name, dying(getattr(Path, name)))
restore(sys.argv[2], Path(sys.argv[3]), force=True)
"""


def test_a_restore_that_is_killed_at_any_step_starts_no_gateway_with_half_of_it(data: Path, tmp_path: Path) -> None:
    backup = made(data, tmp_path / "backup")
    steps, killed = 0, 0
    while True:
        target = tmp_path / f"restored-{steps}"
        restore(str(backup), target)
        (target / "state.db-wal").write_bytes(b"")
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, str(steps), str(backup), str(target)], check=False, timeout=300
        )
        if not done.returncode:
            break
        assert done.returncode == -9
        killed += 1
        if (target / RESTORING_FILE).exists():
            with pytest.raises(StorageSetupError, match="was interrupted"), complete_files(target):
                pass
            with pytest.raises(BackupError, match="was interrupted: run it again with --force"):
                restore(str(backup), target)
        else:
            with complete_files(target):  # the old data, or all of the new
                pass
        restore(str(backup), target, force=True)
        assert not (target / RESTORING_FILE).exists()
        with complete_files(target):
            assert rows(target / "log.db", "SELECT count(*) FROM topics") == [(5000,)]
        steps += 1
    assert killed >= 7  # four old files, three new ones


def test_a_gateway_does_not_wait_for_a_backup_to_cut_its_log(tmp_path: Path) -> None:
    """Its writers would wait with it."""
    (tmp_path / "log.db-wal").touch()
    with (tmp_path / "log.db-wal").open("r+b") as file:
        file.truncate(LIMIT_BYTES + 1)
    log = WriteAheadLog(tmp_path / "log.db", is_synced=True)
    try:
        assert log.is_too_long
        with reading_for_backup(tmp_path):
            assert not log.is_too_long
            with reading_for_backup(tmp_path):  # two at once
                assert not log.is_too_long
            assert not log.is_too_long
        assert log.is_too_long
    finally:
        log.close()
    assert stat.S_IMODE((tmp_path / BACKUP_FILE).stat().st_mode) == 0o600


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_no_backup_and_no_data(data: Path, tmp_path: Path, tiny_disk: Path, form: str) -> None:
    with pytest.raises((StorageSetupError, BackupError, OSError), match=r"full|No space left"):
        back_up(data, str(tiny_disk / form), made_by="a test")
    assert list(tiny_disk.iterdir()) == []
    backup = made(data, tmp_path / form)
    with pytest.raises(OSError, match="No space left"):
        restore(str(backup), tiny_disk)
    assert {path.name for path in tiny_disk.iterdir()} <= LOCKS

"""Run as a program: MM-Rec as on Windows, as far as Linux can play it; then every module, and text to answers.

To mm_rec's own modules the modules and names that only POSIX has are not there, `sys.platform` is "win32", folders are
not opened, and only what may be written is flushed. For everybody a file that is open or mapped can be neither renamed,
replaced nor deleted, as Windows has it. What other packages use is their own affair.
Who starts it sees to the rest: no compiler on the path, and an encoding that is not UTF-8.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import runpy
import signal
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

POSIX_MODULES = {
    "crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "spwd", "syslog", "termios",
    "tty",
}  # fmt: skip
POSIX_NAMES = {
    "os": {
        "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG", "chown", "confstr", "fchdir", "fchmod",
        "fdatasync", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getpriority",
        "getuid", "killpg", "mkfifo", "nice", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv",
        "pwrite", "sched_getaffinity", "sched_setaffinity", "sendfile", "setpriority", "setsid", "statvfs", "sync",
        "sysconf", "sysconf_names", "uname", "wait", "wait3", "wait4",
    },
    "signal": {
        "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1",
        "SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait",
    },
    "socket": {"AF_UNIX", "socketpair"},
    "time": {"tzset"},
}  # fmt: skip


def open_no_folder(path: Any, *arguments: Any, **named: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, *arguments, **named)


def flush_what_may_be_written(handle: int) -> None:
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(handle)


CHANGED: dict[str, dict[str, Any]] = {
    "os": {"name": "nt", "open": open_no_folder, "fsync": flush_what_may_be_written},
    "sys": {"platform": "win32"},
    "platform": {"system": lambda: "Windows"},
}


class WindowsModule(ModuleType):
    """A module of Python's as mm_rec finds it on Windows."""

    def __init__(self, real: ModuleType, hidden: set[str], changed: Mapping[str, Any]) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(changed, _real=real, _hidden=hidden)

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self._real, name)


def hide_posix() -> None:
    """Give mm_rec's modules what Windows has, whichever way they import it."""
    import platform
    import socket
    import time

    real = {"os": os, "sys": sys, "signal": signal, "socket": socket, "time": time, "platform": platform}
    windows = {
        name: WindowsModule(module, POSIX_NAMES.get(name, set()), CHANGED.get(name, {}))
        for name, module in real.items()
    }
    do_import = builtins.__import__

    def import_as_on_windows(name: str, *arguments: Any, **named: Any) -> Any:
        scope = arguments[0] if arguments else named.get("globals")
        level = arguments[3] if len(arguments) > 3 else named.get("level", 0)
        if level == 0 and str((scope or {}).get("__name__", "")).startswith("mm_rec"):
            if name in POSIX_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in windows:
                return windows[name]
        return do_import(name, *arguments, **named)

    builtins.__import__ = import_as_on_windows


def in_use(path: str) -> bool:
    """Whether this process holds a file open or mapped, the path itself or one below it."""
    real = os.path.realpath(path)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        held = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count("/")}
    for handle in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISREG(os.fstat(int(handle)).st_mode):
                held.add(os.readlink(f"/proc/self/fd/{handle}"))
        except OSError:
            continue
    return any(one == real or one.startswith(real + "/") for one in held)


def keep_what_is_in_use(name: str) -> None:
    """Make a function of os that moves or deletes refuse what is held."""
    do: Callable[..., None] = getattr(os, name)

    def as_on_windows(*paths: Any, **named: Any) -> None:
        folder = named.get("dir_fd")
        for path in map(os.fsdecode, paths):
            whole = path if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            if in_use(whole):
                raise PermissionError(errno.EACCES, f"{name}: used by another process (WinError 32)", whole)
        do(*paths, **named)

    setattr(os, name, as_on_windows)


def check_the_play() -> None:
    """What is played must be felt, or the rest proves nothing."""
    here: dict[str, Any] = {"__name__": "mm_rec.somewhere"}
    for statement in (
        "import resource",
        "from os import sysconf",
        "from signal import SIGKILL",
        "import os; os.fork",
    ):
        try:
            exec(statement, here)
        except (ImportError, AttributeError):
            continue
        raise AssertionError(f"{statement} worked")
    exec("import os, sys; assert sys.platform == 'win32' and os.sep", here)
    held = Path("held.txt")
    with held.open("w", encoding="utf-8"):
        for act in (
            held.unlink,
            lambda: held.rename("other.txt"),
            lambda: Path(".").absolute().rename("../other"),
        ):
            try:
                act()
            except PermissionError:
                continue
            raise AssertionError("a file in use was moved or deleted")
    held.unlink()
    try:
        Path("turkish.txt").write_text("ağaç")  # noqa: PLW1514  (that no encoding is named is what is tried)
    except UnicodeEncodeError:
        return
    raise AssertionError("the encoding of this process holds Turkish")


def text_to_answers() -> None:
    """The quickstart's way on a small model: text, tokenizer, training, fine-tuning, resuming, an answer."""
    from mm_rec.cli.main import run
    from mm_rec.data.conversations.dataset_writer import to_rows, write_rows
    from mm_rec.stories.generator import conversations, stories

    Path("text").mkdir()
    for number, story in enumerate(stories(seed=3, count=200)):
        Path(f"text/{number}.txt").write_text(story.text, encoding="utf-8")
    write_rows(
        to_rows(list(conversations(seed=0, count=60)), "openai", Path("chats.jsonl"))[0], Path("chats.jsonl")
    )
    small = ("--set", "pretrain.model.changes={num_hidden_layers: 2, hidden_size: 64}", "--vocab-size", "600")
    steps = ("--steps", "4", "--seq-len", "32", "--batch-size", "4")
    for command in (
        ["pretrain", "text", *small, *steps],
        ["pretrain", "--resume", "runs/tiny"],
        ["sft", "chats.jsonl", "--from", "runs/tiny", "--steps", "4"],
        ["generate", "runs/sft", "--prompt", "Bir gun", "--max-new-tokens", "4"],
        ["evaluate", "text", "runs/sft", "text/0.txt", "--max-new-tokens", "4", "--out", "report"],
        ["runs", "show", "runs/sft"],
    ):
        status = run(command)
        assert status == 0, f"{command}: {status}"


def main() -> None:
    hide_posix()
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        keep_what_is_in_use(name)
    check_the_play()
    runpy.run_path(str(Path(__file__).with_name("import_all.py")))
    text_to_answers()


if __name__ == "__main__":
    main()

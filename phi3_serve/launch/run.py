"""``serve run`` with a terminal for people: ``python -m phi3_serve.launch.run CONFIG URL DIRECTORY MODEL...``.

Serve's own command fills the terminal with the log of all processes. At SIGTERM it ends at once, and at SIGINT (Ctrl-C)
it stops the proxies together with the replicas, so requests in flight get no answer.
"""

import os
import re
import sys
import threading
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from phi3_serve.launch.ending import Ending, end_all_processes

LOG = "server.log"
RAY_LOGS = "ray-logs"
TO_TERMINAL = "-"
_CAUSE = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Refused|Timeout)\w*: .*$", re.MULTILINE)


def main(config: str, url: str, directory: str, *started_at_once: str) -> NoReturn:
    """Run ``config``, which serves at ``url``, until SIGINT or SIGTERM and the end of all requests in flight.

    The log goes to files in ``directory``, or with ``-`` to the terminal. ``started_at_once`` are the models that no
    request has to start.
    """
    console = Console(file=os.fdopen(os.dup(sys.stderr.fileno()), "w"), highlight=False)
    ending = Ending(console)
    ending.take_signals(is_serving=False)  # before the seconds that the import of Ray takes
    log = None if directory == TO_TERMINAL else Path(directory) / LOG
    if log is not None:
        _redirect_to(log)
    try:
        _serve(config, url, console, ending, log, started_at_once)
    except SystemExit:  # of Serve's command
        error = None
    except Exception as raised:
        error = raised
        traceback.print_exception(raised)  # to the log
    if ending.has_begun.is_set():
        end_all_processes(0)
    console.print(_failure(error, log), markup=False, soft_wrap=True)
    end_all_processes(1)


def _serve(
    config: str, url: str, console: Console, ending: Ending, log: Path | None, started_at_once: Collection[str]
) -> None:
    import ray
    from ray.serve import scripts

    from phi3_serve.launch.server_notice import ServerNotice

    ray.init(address=os.environ.get("RAY_ADDRESS"), namespace="serve", log_to_driver=log is None)
    ending.take_signals(is_serving=True)  # Ray has set handlers of its own
    if log is not None:
        node: Any = ray._private.worker._global_node
        _link(log.parent / RAY_LOGS, Path(node.get_logs_dir_path()))
    notice = ServerNotice(url, console, started_at_once)
    threading.Thread(target=notice.run, args=(ending.has_begun,), daemon=True).start()
    scripts.cli.main(["run", config], prog_name="serve")


def _redirect_to(log: Path) -> None:
    """Let this process, and those that it starts, write to ``log`` instead of the terminal."""
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _failure(error: Exception | None, log: Path | None) -> str:
    """Why the server has ended by itself, in plain words."""
    cause = "" if error is None else f" {type(error).__name__}: {' '.join(str(error).split())}"
    if log is None:
        return f"The server could not be started.{cause}"
    if not cause and (found := _CAUSE.findall(log.read_text(errors="replace"))):
        cause = f" {found[-1]}"
    return f"The server could not be started.{cause}\nThe log has more: {log.parent}"


if __name__ == "__main__":
    main(*sys.argv[1:])

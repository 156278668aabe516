"""The server of a run: in the foreground of a command, or in a thread beside what asks it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from xraylab.errors import UserError
from xraylab.serving.app import LOOPBACK, Service
from xraylab.serving.served_run import ServedRun
from xraylab.serving.uploads import Limits
from xraylab.system.signals import raise_on_signals

log = logging.getLogger(__name__)

FOLDER = "xraylab-serve-"  # and the number of the process
STARTED = 20.0  # seconds until a server in a thread must answer


def token_for(host: str, token: str | None) -> str | None:
    """The token of a server: the given one; where none is given and it can be reached from outside, one that is drawn."""
    return token if token or host in LOOPBACK else secrets.token_urlsafe(24)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: any that is free.

    Raises:
        UserError: the host is not this machine's, or the port is taken.
    """
    if not (isinstance(port, int) and not isinstance(port, bool) and 0 <= port <= 65535):
        raise UserError(f"port={port}: it is a number from 0 (any that is free) to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"host={host}: there is no such address here: {error.strerror or error}.") from error
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise UserError(
            f"host={host} port={port}: {error.strerror}. Name another port, or port=0 for any that is free."
        ) from error
    opened.listen(128)
    return opened


def address_of(opened: socket.socket, host: str) -> str:
    """The URL of a listening socket."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{opened.getsockname()[1]}"


def serve(served: ServedRun, opened: socket.socket, limits: Limits, token: str | None, hosts: tuple[str, ...] | None) -> None:
    """Answer until Ctrl-C or SIGTERM; requests that were begun are answered."""
    with _folder() as folder, suppress(KeyboardInterrupt), raise_on_signals():  # which uvicorn passes on when it has ended
        _server(Service(served, limits, folder, token, hosts)).run(sockets=[opened])


@contextmanager
def serving(
    served: ServedRun, limits: Limits | None = None, token: str | None = None, host: str = "127.0.0.1"
) -> Iterator[str]:  # fmt: skip
    """Context in which a run is served by a thread; gives its URL.

    Raises:
        RuntimeError: it does not start.
    """
    opened = listening(host, 0)
    with _folder() as folder:
        server = _server(Service(served, limits or Limits(), folder, token))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        began = time.monotonic()
        while not server.started:
            if not thread.is_alive() or time.monotonic() - began > STARTED:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        try:
            yield address_of(opened, host)
        finally:
            server.should_exit = True
            thread.join(STARTED)


def _server(service: Service) -> uvicorn.Server:
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # no access log, which would have what is asked for; no header that names the server
    config = uvicorn.Config(
        service.app(), log_config=None, access_log=False, server_header=False, lifespan="off", timeout_keep_alive=5,
        timeout_graceful_shutdown=30, h11_max_incomplete_event_size=2**16, proxy_headers=False,
    )  # fmt: skip
    return uvicorn.Server(config)


@contextmanager
def _folder() -> Iterator[Path]:
    """A private folder for requests' files, which is removed; and so are those of servers that were killed."""
    top = Path(tempfile.gettempdir())
    for left in top.glob(f"{FOLDER}*"):
        number = re.match(rf"{FOLDER}(\d+)-", left.name)
        if number and left.is_dir() and left.stat().st_uid == os.getuid() and not _alive(int(number[1])):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

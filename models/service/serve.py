"""Composing and running the service: one server process with a worker process beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from models.machine.errors import InputError, MachineError
from models.machine.version import __version__
from models.mochi.setup import Request
from models.service.app import make_app
from models.service.engine import PipelineEngine
from models.service.files import Files, Janitor
from models.service.jobs import StoreUnavailable
from models.service.keys import ENVIRONMENT, Keys, is_loopback
from models.service.limits import patient
from models.service.log import JsonHandler, log, log_error
from models.service.requests import Planner
from models.service.service import Service
from models.service.settings import Settings
from models.service.store import open_store
from models.service.supervisor import Supervisor
from models.service.worker import MakeEngine

_CLEAN_SECONDS = 10.0
_LOCK_SECONDS = 5.0
_GRACE_SECONDS = 10
_PAGE_GRACE_SECONDS = 2
_BACKLOG = 2048


def serve(
    settings: Settings,
    request: Request,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Keys | None = None,
    lora_folder: Path | None = None,
    make_engine: MakeEngine | None = None,
    page: bool = False,
    on_start: Callable[[str], None] = print,
) -> None:
    """Serve until an interrupt.

    Args:
        settings: bounds and places.
        request: what the worker opens; its video and components are the service's business.
        host: address to listen at.
        port: to listen at; 0 for one that is free.
        keys: who may ask.
        lora_folder: whose LoRAs clients may name.
        make_engine: makes the worker's engine, in its process; the pipeline's by default.
        page: whether to mount the page (`models.service.page`).
        on_start: called with a line that names the address, once requests are answered.

    Raises:
        InputError: a value breaks its rule, a public address has no keys, or the folder is another service's.
        MachineError: the address cannot be had.
    """
    keys = keys or Keys()
    if not keys and not is_loopback(host):
        raise InputError(
            f"host {host} can be reached from other machines, so the service needs keys: give --keys FILE or "
            f"{ENVIRONMENT}, or listen at 127.0.0.1"
        )
    if settings.on_stop not in ("finish", "park"):
        raise InputError(f"on-stop {settings.on_stop!r} must be finish or park")
    os.umask(0o077)  # Of the worker's process too: prompts and videos are this user's alone.
    _make_folders(settings)
    with settings.alone("service", _LOCK_SECONDS), _listening(host, port) as listener:
        planner = Planner(request, lora_folder, inputs=settings.inputs)
        jobs = open_store(settings.database, settings.lease_seconds)
        jobs.catch_up()
        supervisor = Supervisor(
            settings, jobs, make_engine or partial(PipelineEngine, request, lora_folder, settings.inputs)
        )
        service = Service(settings, jobs, planner, supervisor)
        server = _server(service, keys, page=page)
        _log_libraries()
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        web = threading.Thread(target=lambda: server.run(sockets=[listener]), name="web", daemon=True)
        web.start()
        while not server.started and web.is_alive():
            time.sleep(0.01)
        on_start(f"http://{shown}:{bound}")
        log("serving", version=__version__, model=planner.name, mode=planner.setup.mode, keys=bool(keys))
        try:
            _run(settings, service, supervisor)
        finally:
            server.should_exit = True
            web.join(_GRACE_SECONDS + 5)
            jobs.close()
    log("served")


def _run(settings: Settings, service: Service, supervisor: Supervisor) -> None:
    """Run the supervisor and the janitor until an interrupt; then end the worker by `on_stop`."""
    failed: list[BaseException] = []
    ended = threading.Event()

    def supervise() -> None:
        try:
            supervisor.run()
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    # In a thread of its own: an interrupt of the main thread then finds nothing half-done.
    keeper = threading.Thread(target=supervise, name="supervisor", daemon=True)
    keeper.start()
    janitor = Janitor(
        service.jobs,
        Files(settings.results),
        settings.inputs,
        keep_seconds=settings.keep_seconds,
        keep_bytes=settings.keep_bytes,
        clock=time.monotonic,
    )
    try:
        while not ended.wait(min(_CLEAN_SECONDS, settings.lease_seconds / 6)):
            supervisor.adopt()
            _clean(janitor)
    except KeyboardInterrupt:
        log("stopping", how=settings.on_stop)
        supervisor.stop(settings.on_stop)
        ended.wait()
    keeper.join()
    if failed:
        raise failed[0]


def _clean(janitor: Janitor) -> None:
    try:
        expired, swept = janitor.clean()
    except (StoreUnavailable, OSError) as error:
        log_error("not cleaned", error)
        return
    for name in expired:
        log("result expired", job=name)
    for name in swept:
        log("folder swept", job=name)


def _make_folders(settings: Settings) -> None:
    """Make the service's folder, for its user alone.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.results.mkdir(mode=0o700, exist_ok=True)
        if not os.access(settings.folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission")
        for path in (settings.results, *settings.folder.glob("jobs.sqlite3*"), *settings.folder.glob("*.lock")):
            if path.stat().st_mode & 0o077 and path.stat().st_uid == os.geteuid():
                path.chmod(path.stat().st_mode & 0o700)
    except OSError as error:
        raise InputError(
            f"folder {settings.folder} cannot be used ({error.strerror}): choose another --folder"
        ) from error


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: the port is none.
        MachineError: the address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} must be from 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise MachineError(
            f"address {host}:{port} cannot be had ({error.strerror or error}): choose another --host or --port"
        ) from error


def _server(service: Service, keys: Keys, *, page: bool) -> uvicorn.Server:
    settings = service.settings
    if page:
        from models.service.page import PATH, mount

        app = make_app(service, keys, PATH)
        mount(app, service, keys)
    else:
        app = make_app(service, keys)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=patient(settings.body_seconds, settings.send_seconds),
            ws="none",
            loop="asyncio",
            lifespan="on" if page else "off",  # gradio's queue begins there
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            # A page's open tabs hold a stream each, which ends only so.
            timeout_graceful_shutdown=_PAGE_GRACE_SECONDS if page else _GRACE_SECONDS,
            backlog=_BACKLOG,
        )
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of a library says more than that a stream was ended because the service stops."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "timeout graceful shutdown" not in record.getMessage()


def _log_libraries() -> None:
    """Have what libraries log written as our own lines are."""
    for name in ("uvicorn", "uvicorn.error", "asyncio", "psycopg.pool"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.filters = [JsonHandler()], False, [_is_news]
        logger.setLevel(logging.WARNING)

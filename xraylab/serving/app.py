"""The page and the JSON interface of a served run, as an ASGI application.

A request's files live in a folder of its own until it is answered. One study is predicted at a time; others wait, up to a limit.
No name of a file and nothing of a patient is logged.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive

from xraylab.reporting.model_card import CARD
from xraylab.run import home_of
from xraylab.serving.openapi import description
from xraylab.serving.samples import Samples
from xraylab.serving.served_run import NOTICE, ServedRun
from xraylab.serving.uploads import MEGABYTE, Limits, Refusal, Study, Upload, decoded_study, suffix_of

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
SIDE = 1024  # pixels of a side at most of pictures in an answer
COOKIE = "xraylab_token"
PORT = re.compile(r":\d*$")
CHARSET = re.compile(r"charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
OPEN = ("/healthz", "/static/page.css")  # without a token


class Service:
    """What answers requests.

    Args:
        served: the run.
        limits: of a request.
        folder: where requests' files lie while they are answered.
        token: who asks must know it; None: nobody must.
        hosts: names that the server may be called by; None: any.
    """

    def __init__(
        self, served: ServedRun, limits: Limits, folder: Path, token: str | None = None, hosts: tuple[str, ...] | None = LOOPBACK
    ) -> None:
        self.served, self.limits, self.folder, self.token, self.hosts = served, limits, folder, token, hosts
        self.samples = Samples(served.run)
        self.waiting = 0
        self._files = {name: (PAGE / name).read_bytes() for name in STATIC}
        self._decoding, self._predicting = anyio.CapacityLimiter(2), anyio.CapacityLimiter(1)
        self._pages = Environment(loader=FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True)

    def app(self) -> Starlette:
        """The application."""
        get: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self.page, "/card": self.card, "/docs": self.docs, "/openapi.json": self.openapi, "/healthz": self.health,
            "/api/model": self.model, "/api/samples": self.sample_names, "/api/threshold": self.threshold,
            "/static/{name}": self.static,
        }  # fmt: skip
        routes = [Route(path, self._guarded(answer), methods=["GET"]) for path, answer in get.items()]
        routes.append(Route("/api/predict", self._guarded(self.predict), methods=["POST"]))
        errors = {HTTPException: self._no_route}
        return Starlette(routes=routes, exception_handlers=errors)

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Answers with refusals as JSON, headers, and a line in the log that names nothing of the request but its path."""

        async def guarded(request: Request) -> Response:
            started = time.monotonic()
            try:
                response = self._refused(request) or await answer(request)
            except Refusal as error:
                response = _refusal(error)
            except ClientDisconnect:
                response = _refusal(Refusal("gone", "the visitor left.", 400))
            except Exception as error:  # which is this program's fault; its message may name a file
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("%s %s: %s\n%s", request.method, request.url.path, type(error).__name__, where)
                response = _refusal(Refusal("internal", "an error of this program; nothing was kept.", 500))
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            if request.method == "POST":
                took = time.monotonic() - started
                log.info("%s %s %d, %.2f s", request.method, request.url.path, response.status_code, took)
            return response

        return guarded

    def _refused(self, request: Request) -> Response | None:
        """Why a request is not heard, or None."""
        host = request.headers.get("host", "")
        name = PORT.sub("", host).lower()
        if self.hosts is not None and name not in self.hosts:
            raise Refusal("host", f"this server is not called {name}.", 403)
        origin = request.headers.get("origin")
        if request.method == "POST" and origin is not None and origin.partition("://")[2] != host:
            raise Refusal("origin", "the request comes from another page.", 403)
        if self.token is None or request.url.path in OPEN:
            return None
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        typed = request.query_params.get("token") if request.url.path == "/" else None
        given = bearer if scheme.lower() == "bearer" else typed or request.cookies.get(COOKIE, "")
        if secrets.compare_digest(given.encode(), self.token.encode()):
            if typed is None:
                return None
            response = RedirectResponse("/", status_code=303)  # so that the token is in no address
            response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return response
        if request.url.path == "/":
            return HTMLResponse(self._pages.get_template("token.html").render(wrong=typed is not None), 401)
        raise Refusal("token", "give the token that the server printed: Authorization: Bearer <token>.", 401)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        words = {404: "there is no such page.", 405: "not by this method."}
        return _refusal(Refusal("no_such_page", words.get(status, "that cannot be answered."), status))

    async def page(self, request: Request) -> Response:
        """The page."""
        served = self.served
        body = self._pages.get_template("index.html").render(
            name=served.name, labels=served.labels, synthetic=served.synthetic, notice=NOTICE, planes=served.wanted.planes,
            rules=served.decisions.rules, point=served.decisions.point, limits=self.limits, card=self._card() is not None,
        )  # fmt: skip
        return HTMLResponse(body)

    def _card(self) -> Path | None:
        home = home_of(self.served.run)
        return home / CARD if home is not None and (home / CARD).is_file() else None

    async def card(self, request: Request) -> Response:
        """The model card."""
        path = self._card()
        if path is None:
            raise Refusal("no_card", "this model has no card; python -m xraylab.report run=<run> writes it.", 404)
        html = MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text(encoding="utf-8"))
        html = html.replace("<table>", '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>')
        html = html.replace("</table>", "</table></div>")
        return HTMLResponse(self._pages.get_template("card.html").render(body=Markup(html), name=self.served.name))

    async def docs(self, request: Request) -> Response:
        """What the interface takes and answers, to read."""
        found = description(self.served.labels, self.limits, self.token is not None)
        return HTMLResponse(self._pages.get_template("docs.html").render(of=found, name=self.served.name, base=request.base_url))

    async def openapi(self, request: Request) -> Response:
        """The same for programs."""
        return JSONResponse(description(self.served.labels, self.limits, self.token is not None))

    async def static(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise Refusal("no_such_page", "there is no such file.", 404)
        return Response(self._files[name], media_type=STATIC[name])

    async def health(self, request: Request) -> Response:
        """Whether it is up, and how many wait."""
        return JSONResponse({"status": "ok", "waiting": self.waiting})

    async def model(self, request: Request) -> Response:
        """What the model is, and the limits."""
        served = self.served
        return JSONResponse({
            "name": served.name, "labels": served.labels, "synthetic": served.synthetic, "notice": NOTICE,
            "planes": list(served.wanted.planes), "view": served.wanted.view, "operating_point": served.decisions.point,
            "operating_points": served.decisions.rules, "limits": asdict(self.limits),
        })  # fmt: skip

    async def sample_names(self, request: Request) -> Response:
        """Synthetic studies that can be tried."""
        return JSONResponse({"samples": await anyio.to_thread.run_sync(self.samples.names, limiter=self._decoding)})

    async def threshold(self, request: Request) -> Response:
        """What another threshold would have done on validation."""
        label = request.query_params.get("finding", "")
        try:
            value = float(request.query_params.get("threshold", ""))
        except ValueError:
            value = -1.0
        if label not in self.served.labels or not 0 <= value <= 1:
            raise Refusal("bad_request", "finding is one of the model's and threshold is a number from 0 to 1.", 400)
        found = await anyio.to_thread.run_sync(self.served.decisions.would_have, label, value, limiter=self._decoding)
        return JSONResponse(found)

    async def predict(self, request: Request) -> Response:
        """Predict the study that is sent, or a sample."""
        if self.waiting >= self.limits.waiting:
            response = _refusal(Refusal("busy", "too many studies are waiting; try again in a few seconds.", 503))
            response.headers["Retry-After"] = "5"
            return response
        self.waiting += 1
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            uploads, values = await self._received(request, folder)
            pictures = SIDE if values.get("pictures", "false").lower() in ("true", "1") else 0
            findings = [name for name in values.get("findings", "").split(",") if name]
            study = await anyio.to_thread.run_sync(self._study, uploads, values, folder, limiter=self._decoding)
            found = await anyio.to_thread.run_sync(self.served.answer, study, findings, pictures, limiter=self._predicting)
        finally:
            self.waiting -= 1
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
        return JSONResponse(found)

    def _study(self, uploads: list[Upload], values: Mapping[str, str], folder: Path) -> Study:
        if "sample" in values:
            return self.samples.study(values["sample"], folder)
        return decoded_study(uploads, folder, self.limits, self.served.colour, self.served.bits, self.served.rule)

    async def _received(self, request: Request, folder: Path) -> tuple[list[Upload], dict[str, str]]:
        """The files and the values of a form, written as they come.

        Raises:
            Refusal: it is no such form, is too large or too slow, or is nothing.
        """
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise Refusal("bad_request", "send files as multipart/form-data, in the field files.", 415)
        if (charset := CHARSET.search(request.headers["content-type"])) and charset[1].lower() not in ("utf-8", "utf8"):
            raise Refusal("bad_request", "the form is not in UTF-8.", 415)
        most = int(self.limits.megabytes * MEGABYTE)
        if int(request.headers.get("content-length") or 0) > most:
            raise _too_large(self.limits)
        counted = Request(request.scope, _counted(request.receive, most, self.limits))
        uploads: list[Upload] = []
        values: dict[str, str] = {}
        try:
            with anyio.fail_after(self.limits.upload_seconds):
                async with counted.form(max_files=self.limits.files, max_fields=16) as form:
                    for number, (key, value) in enumerate(form.multi_items()):
                        if not isinstance(value, UploadFile):
                            values[key] = value
                        elif key == "files" and value.filename:
                            path = folder / f"upload{number}{suffix_of(value.filename)}"
                            await anyio.to_thread.run_sync(_copy, value, path)
                            uploads.append(Upload(value.filename.replace("\\", "/"), path))
        except TimeoutError:
            seconds = f"{self.limits.upload_seconds:g} s"
            raise Refusal("too_slow", f"the files were not here after {seconds}.", 408) from None
        except UnicodeError:
            raise Refusal("bad_request", "a name or a value is not UTF-8.", 400) from None
        except HTTPException as error:  # of what is no form
            many = "Too many files" in str(error.detail)
            words = f"more than {self.limits.files} files were sent." if many else "the form cannot be read."
            raise Refusal("too_many" if many else "bad_request", words, 413 if many else 400) from None
        if not uploads and "sample" not in values:
            raise Refusal("bad_request", "no file was sent: files go into the field files.", 400)
        return uploads, values


def _copy(value: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(value.file, file)


def _counted(receive: Receive, most: int, limits: Limits) -> Receive:
    """The messages of a request, until its body goes beyond a limit, whatever its headers say."""
    left = most

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(limits)
        return message

    return counted


def _too_large(limits: Limits) -> Refusal:
    return Refusal("too_large", f"more than {limits.megabytes:g} MB were sent.", 413)


def _refusal(error: Refusal) -> JSONResponse:
    content: dict[str, Any] = {"error": error.message, "reason": error.reason, **error.more}
    return JSONResponse(content, error.status)

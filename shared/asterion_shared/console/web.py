"""A console as a web application: signing in and out, forms, pages, and word of changes."""

import asyncio
import logging
import re
import secrets
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from asterion_shared.console.guard import Guard
from asterion_shared.console.pages import (
    Answer,
    Goto,
    NotThereError,
    Page,
    Sent,
    Shown,
    Tab,
    Upload,
    Visit,
)
from asterion_shared.console.people import person_with, read_people
from asterion_shared.console.rendering import environment_of, render, static_files
from asterion_shared.console.sessions import Attempts, Session, Sessions
from asterion_shared.console.settings import ConsoleSettings
from asterion_shared.errors import AsterionError, OrderRefusedError, UserInputError

LOG = logging.getLogger("asterion.console")
LOOK_SECONDS = 1.0
"""Pause between two looks whether a page has changed."""

MOST_WATCHED = 64
"""Open pages that hear of changes at one time; others are as they were loaded."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_HASHES_AT_ONCE = 2
"""Passwords that are checked at one time: each takes 64 MiB."""

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """What one side's console is.

    Attributes:
        title: whose it is, such as ``coordinator centre``.
        settings: where it is served.
        people: file of those who may sign in.
        command: that adds somebody.
        templates: the side's own.
        tabs: its menu.
        pages: all that it shows and does.
    """

    title: str
    settings: ConsoleSettings
    people: Path
    command: str
    templates: Path
    tabs: Sequence[Tab]
    pages: Sequence[Page]


class _Web:
    def __init__(self, console: Console, sessions: Sessions, attempts: Attempts) -> None:
        self.console, self.sessions, self.attempts = console, sessions, attempts
        self.environment = environment_of(console.templates)
        # A name of its own for each port: cookies are shared by all ports of a machine.
        self.cookie = f"asterion-{console.settings.port}"
        if console.settings.has_tls:
            self.cookie = f"__Host-{self.cookie}"
        self._hashing = asyncio.Semaphore(_HASHES_AT_ONCE)
        self._watched = 0

    def routes(self) -> list[Route]:
        found = [
            Route("/sign-in", self.told(self.sign_in), methods=["GET", "POST"]),
            Route("/sign-out", self.told(self.sign_out), methods=["POST"]),
            Route("/static/{name}", self.static, methods=["GET"]),
        ]
        for page in self.console.pages:
            methods = [*(["GET"] if page.show else []), *(["POST"] if page.act else [])]
            found.append(Route(page.path, self.told(self.page(page)), methods=methods))
            if page.stamp is not None:
                live = f"{page.path.rstrip('/')}/live"
                found.append(Route(live, self.live(page), methods=["GET"]))
        return found

    async def static(self, request: Request) -> Response:
        found = static_files().get(request.path_params["name"])
        if found is None:
            return self.problem(None, "There is no such file.", 404)
        content, kind = found
        return Response(content, media_type=kind, headers={"Cache-Control": "max-age=300"})

    async def sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            return self.sign_in_page(request, "", "", 200)
        async with request.form(max_files=0, max_fields=10) as form:
            fields = {key: str(value) for key, value in form.items()}
        name, password = fields.get("name", "").strip(), fields.get("password", "")
        token, held = fields.get("form", ""), request.cookies.get(f"{self.cookie}-form", "")
        if not _same(token, held) or not _from_here(request):
            words = "The page was too old, or cookies are switched off. Please try again."
            return self.sign_in_page(request, name, words, 400)
        address = f"address {request.client.host if request.client else ''}"
        keys = [f"name {name[:64]}", address]
        wait = self.attempts.begin(keys)
        if wait > 0:
            words = f"There were too many tries. Please wait {wait:.0f} seconds."
            answer = self.sign_in_page(request, name, words, 429)
            answer.headers["Retry-After"] = f"{wait:.0f}"
            return answer
        async with self._hashing:
            people = await run_in_threadpool(read_people, self.console.people, self.console.command)
            person = await run_in_threadpool(person_with, people, name, password)
        if person is None:
            return self.sign_in_page(request, name, "Name or password is wrong.", 403)
        self.attempts.succeeded(keys[0], keys[1:])
        self.sessions.end(request.cookies.get(self.cookie, ""))
        done = RedirectResponse(self.console.tabs[0].path, 303)
        self.set_cookie(done, self.cookie, self.sessions.begin(name, person))
        done.delete_cookie(f"{self.cookie}-form")
        return done

    def sign_in_page(self, request: Request, name: str, said: str, status: int) -> Response:
        # The same for all pages of a browser: else a second one would spoil the first.
        held = request.cookies.get(f"{self.cookie}-form", "")
        token = held if _TOKEN.fullmatch(held) else secrets.token_urlsafe(32)
        values = {"form": token, "name": name, "said": said}
        answer = self.shown(None, Shown("sign_in.html.j2", values, status))
        self.set_cookie(answer, f"{self.cookie}-form", token)
        return answer

    async def sign_out(self, request: Request) -> Response:
        session, token = await self.session(request, used=False), _token(request, self.cookie)
        async with request.form(max_files=0, max_fields=10) as form:
            csrf = str(form.get("csrf", ""))
        if session is not None and _same(csrf, session.csrf):
            self.sessions.end(token)
        done = RedirectResponse("/sign-in", 303)
        done.delete_cookie(self.cookie)
        return done

    def page(self, page: Page) -> Handler:
        async def handle(request: Request) -> Response:
            by_itself = request.headers.get("x-asterion-live") == "1"
            session = await self.session(request, used=not by_itself)
            if session is None:
                return RedirectResponse("/sign-in", 303)
            if request.method == "POST":
                return await self.acted(page, session, request)
            visit = Visit(session=session, path=request.path_params)
            if page.show is None:
                return self.problem(session, "There is nothing to see here.", 404)
            return await self.answered(page.show, visit, by_itself=by_itself)

        return handle

    async def acted(self, page: Page, session: Session, request: Request) -> Response:
        fields: dict[str, list[str]] = {}
        uploads: dict[str, Upload] = {}
        async with request.form(max_files=2, max_fields=2000) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    fields.setdefault(name, []).append(value)
                elif value.filename:
                    uploads[name] = Upload(value.filename, await value.read())
        if not _same((fields.get("csrf") or [""])[0], session.csrf) or not _from_here(request):
            words = "The form was not made by this session; open its page and try again."
            return self.problem(session, words, 403)
        if session.role != "acts" or page.act is None:
            return self.problem(session, "You may look at this console, and change nothing.", 403)
        visit = Visit(session=session, path=request.path_params, form=fields, uploads=uploads)
        return await self.answered(page.act, visit)

    async def answered(
        self, function: Callable[[Visit], Answer], visit: Visit, *, by_itself: bool = False
    ) -> Response:
        try:
            answer = await run_in_threadpool(function, visit)
        except NotThereError as error:
            return self.problem(visit.session, str(error), 404)
        except AsterionError as error:
            status = 400 if isinstance(error, UserInputError | OrderRefusedError) else 503
            return self.problem(visit.session, str(error), status)
        if isinstance(answer, Goto):
            visit.session.said = answer.said
            return RedirectResponse(answer.path, 303)
        if isinstance(answer, Sent):
            policy = {"Content-Security-Policy": answer.policy}
            return Response(answer.content, media_type=answer.content_type, headers=policy)
        return await run_in_threadpool(self.shown, visit.session, answer, by_itself=by_itself)

    def live(self, page: Page) -> Handler:
        async def handle(request: Request) -> Response:
            token = _token(request, self.cookie)
            session = await self.session(request, used=False)
            if session is None:
                return Response("signed out\n", 403)
            if self._watched >= MOST_WATCHED:
                return Response("too many pages are open\n", 503)
            visit = Visit(session=session, path=request.path_params)
            changes = self.changes(page, visit, token)
            return StreamingResponse(changes, media_type="text/event-stream")

        return handle

    async def changes(self, page: Page, visit: Visit, token: str) -> AsyncIterator[str]:
        """A line each time the page would be another; ends with the session."""
        assert page.stamp is not None  # noqa: S101  # else there is no such route
        self._watched += 1
        try:
            before = await self.stamped(page.stamp, visit)
            yield "retry: 3000\n\n"
            while self.sessions.find(token, used=False) is visit.session:
                await asyncio.sleep(LOOK_SECONDS)
                now = await self.stamped(page.stamp, visit)
                # A comment now and then: else nobody sees that the browser is gone.
                yield "event: changed\ndata: now\n\n" if now != before else ": here\n\n"
                before = now
            yield "event: ended\ndata: now\n\n"
        finally:
            self._watched -= 1

    async def stamped(self, stamp: Callable[[Visit], str], visit: Visit) -> str:
        try:
            return await run_in_threadpool(stamp, visit)
        except (AsterionError, NotThereError) as error:
            return f"{type(error).__name__}: {error}"

    async def session(self, request: Request, *, used: bool) -> Session | None:
        """The session, if its person may still sign in as they did."""
        token = _token(request, self.cookie)
        found = self.sessions.find(token, used=used)
        if found is None:
            return None
        try:
            people = await run_in_threadpool(read_people, self.console.people, self.console.command)
        except AsterionError:
            people = None
        if people is None or people.people.get(found.name) != found.person:
            self.sessions.end(token)
            return None
        return found

    def shown(self, session: Session | None, answer: Shown, *, by_itself: bool = False) -> Response:
        said = ""
        # A page that updates by itself while somebody acts must not take what the next is to say.
        if session is not None and not by_itself:
            said, session.said = session.said, ""
        around = {
            "console": self.console.title,
            "tabs": self.console.tabs,
            "who": "" if session is None else session.name,
            "may_act": session is not None and session.role == "acts",
            "csrf": "" if session is None else session.csrf,
            "done": said,
        }
        text = render(self.environment, answer.template, {**around, **answer.values})
        return HTMLResponse(text, answer.status)

    def problem(self, session: Session | None, words: str, status: int) -> Response:
        values = {"words": words, "status": status, "tab": ""}
        return self.shown(session, Shown("problem.html.j2", values, status))

    def set_cookie(self, answer: Response, name: str, value: str) -> None:
        answer.set_cookie(
            name,
            value,
            secure=self.console.settings.has_tls,
            httponly=True,
            samesite="strict",
            path="/",
        )

    async def not_found(self, request: Request, error: Exception) -> Response:
        session = await self.session(request, used=False)
        return self.problem(session, "There is no such page.", 404)

    def told(self, handle: Handler) -> Handler:
        """The same, but what goes wrong becomes a page, and never the text of a fault in a log."""

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException:
                raise
            except AsterionError as error:
                status = 400 if isinstance(error, UserInputError) else 503
                return self.problem(None, str(error), status)
            except Exception as error:
                _log_fault(error)
                words = "The console failed at this page; its log has the place."
                return self.problem(None, words, 500)

        return handled


def web_application(
    console: Console, sessions: Sessions | None = None, attempts: Attempts | None = None
) -> ASGIApp:
    """The application, with all that stands before its pages.

    Args:
        console: what it is.
        sessions: None: none yet.
        attempts: None: nobody has tried yet.
    """
    web = _Web(console, sessions or Sessions(), attempts or Attempts())
    app = Starlette(
        routes=web.routes(),
        exception_handlers={404: web.not_found, 405: web.not_found},
    )
    settings = console.settings
    return Guard(app, settings.accepted_hosts(), has_tls=settings.has_tls)


def _log_fault(error: Exception) -> None:
    """Where it happened, and no text of it: that may hold what a file or an upload says."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]
    LOG.error("a page failed: %s at %s", type(error).__name__, " > ".join(places))


def _token(request: Request, cookie: str) -> str:
    return request.cookies.get(cookie, "")


def _same(given: str, held: str) -> bool:
    return bool(held) and secrets.compare_digest(given.encode(), held.encode())


def _from_here(request: Request) -> bool:
    """Whether the browser says that the form stood on a page of ours, where it says anything.

    With ``no-referrer`` the ``Origin`` of a form is ``null``; ``Sec-Fetch-Site`` tells more.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    origin = request.headers.get("origin", "null")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    return origin in ("null", own)

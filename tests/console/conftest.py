"""A console without a browser: its real server, and an HTTP client with cookies."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp
from tests.console.examples import PASSWORD, everything
from tests.link.loopback import free_port

from asterion_server.console.console import operator_console
from asterion_server.keys import Provisioned
from asterion_shared.console.web import Console, web_application

SITES = ["east", "north", "south"]


class Browser:
    """Somebody at a console: follows redirects, keeps cookies, fills in forms."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def get(self, path: str) -> str:
        """The page, which must be there."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def hidden(self, path: str, name: str) -> str:
        """A hidden field of the first form of a page that has it."""
        found = re.search(f'name="{name}" value="([^"]+)"', self.client.get(path).text)
        assert found is not None
        return found[1]

    def post(self, path: str, page: str = "/", **form: str) -> httpx.Response:
        """Send a form that stands on a page."""
        return self.client.post(path, data={"csrf": self.hidden(page, "csrf")} | form)

    def sign_in(self, name: str = "anna", password: str = PASSWORD) -> httpx.Response:
        form = {"form": self.hidden("/sign-in", "form"), "name": name, "password": password}
        return self.client.post("/sign-in", data=form)


@contextmanager
def served(app: ASGIApp, port: int) -> Iterator[str]:
    """Serve an application on this machine; its address without the last slash."""
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    """A coordinator that tests only look at."""
    return everything(tmp_path_factory.mktemp("console") / "centre", free_port(), SITES)


@pytest.fixture
def visit() -> Iterator[Callable[[Console], Browser]]:
    """Opens a console, anew: nobody has signed in."""
    with ExitStack() as stack:

        def browser(console: Console) -> Browser:
            url = stack.enter_context(served(web_application(console), console.settings.port))
            client = httpx.Client(base_url=url, follow_redirects=True, timeout=120)
            return Browser(stack.enter_context(client))

        yield browser


@pytest.fixture
def browse(visit: Callable[[Console], Browser]) -> Callable[[Provisioned], Browser]:
    """Opens the console of a coordinator."""
    return lambda made: visit(operator_console(made))


@pytest.fixture
def stranger(made: Provisioned, browse: Callable[[Provisioned], Browser]) -> Browser:
    """Somebody who has not signed in."""
    return browse(made)


@pytest.fixture
def anna(stranger: Browser) -> Browser:
    """Somebody who may act."""
    assert stranger.sign_in().status_code == 200
    return stranger

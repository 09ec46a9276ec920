"""Asks a chat model behind any OpenAI-compatible endpoint: ChatGPT, vLLM, llama.cpp's server, Ollama."""

import concurrent.futures
import dataclasses
import itertools
import os
import threading
import time

from ivid2vid_jax.utils.errors import UserError

MOST_PAUSE = 60.0  # s between two tries, whatever a server asks for


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Where and how the chat model is asked."""

    base_url: str | None = None  # e.g. http://localhost:8000/v1; None = OpenAI's own
    model: str = "gpt-4o-mini"
    key: str = (
        "OPENAI_API_KEY"  # environment variable that holds the key; a local server needs none
    )
    temperature: float = 0.7
    max_tokens: int = 600  # of a reply
    timeout: float = 60.0  # s for a whole reply, however slowly it comes
    retries: int = 4  # after busy servers, dropped connections and timeouts, with growing pauses or those that the server asks for
    per_minute: float = 60.0  # requests, at most
    concurrency: int = 4  # requests under way at once
    price_in: float = 0.0  # dollars a million tokens asked,
    price_out: float = 0.0  # and answered, for estimates


@dataclasses.dataclass(frozen=True)
class Reply:
    """text, and what it took; model: as the server names it."""

    text: str
    model: str
    tokens_in: int
    tokens_out: int


class ChatError(Exception):
    """No reply to one request, after all retries; the message says why. Another request may succeed."""


class Busy(ChatError):
    """Worth another try, after `pause` seconds where the server names them."""

    def __init__(self, message: str, pause: float | None = None):
        super().__init__(message)
        self.pause = pause


class Unreachable(Busy):
    """Nobody answers at the address."""


class Chat:
    """chat.ask(messages) -> Reply; safe from several threads. Raises UserError for what no further request can change: key, quota, model, address."""

    def __init__(self, config: ChatConfig):
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise UserError(
                'asking a chat model needs the openai client: pip install "ivid2vid_jax[synthesis]"'
            ) from error
        if config.base_url is None and not os.environ.get(config.key):
            raise UserError(
                f"--chat.base-url is not given, so OpenAI would be asked, but the environment has no {config.key}; set it, or name a local server"
            )
        self.config, self.server = config, config.base_url or "OpenAI"
        self.gate, self.next = threading.Lock(), 0.0
        self.answered = False  # whether any request has been, so that the address is right

    def ask(self, messages: list[dict]) -> Reply:
        for attempt in itertools.count():
            self.wait_for_turn()
            try:
                return self.in_time(messages)
            except Busy as error:
                if attempt >= self.config.retries:
                    if isinstance(error, Unreachable) and not self.answered:
                        raise UserError(
                            f"--chat.base-url: {error}, and has not answered at all; start it, or name another"
                        ) from error
                    raise
                time.sleep(
                    min(MOST_PAUSE, 0.5 * 2**attempt if error.pause is None else error.pause)
                )
        raise AssertionError("unreachable")

    def in_time(self, messages: list[dict]) -> Reply:
        """One request; a reply that drips for longer than `timeout` is given up, which the client's own timeout, one between bytes, does not do.

        The request has a client of its own, for closing that is what ends it; other threads' requests must go on.
        """
        import openai

        key = os.environ.get(self.config.key) or "none"
        client = openai.OpenAI(
            base_url=self.config.base_url, api_key=key, timeout=self.config.timeout, max_retries=0
        )
        pool = concurrent.futures.ThreadPoolExecutor(1)
        try:
            return pool.submit(self.once, client, messages).result(timeout=self.config.timeout)
        except concurrent.futures.TimeoutError as error:
            raise Busy(f"no whole reply within {self.config.timeout:g} s") from error
        finally:
            client.close()  # ends a reply that is still dripping
            pool.shutdown(wait=False)

    def once(self, client, messages: list[dict]) -> Reply:
        import openai

        c = self.config
        try:
            found = client.chat.completions.create(
                model=c.model, messages=messages, temperature=c.temperature, max_tokens=c.max_tokens
            )
            self.answered = True
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"{self.server} refuses the key of {c.key} ({brief(error)})") from error
        except openai.NotFoundError as error:
            raise UserError(
                f"{self.server} knows no model {c.model!r} ({brief(error)}); name another with --chat.model"
            ) from error
        except openai.APITimeoutError as error:
            raise Busy(f"no reply within {c.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise Unreachable(
                f"{self.server} cannot be reached ({brief(error.__cause__ or error)})"
            ) from error
        except openai.APIStatusError as error:
            self.answered = True
            message = f"status {error.status_code} ({brief(error)})"
            if error.code == "insufficient_quota":
                raise UserError(
                    f"{self.server}: the quota of {c.key} is used up ({brief(error)}); what was answered is kept: go on with more, or another key"
                ) from error
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise Busy(message, seconds(error.response.headers.get("retry-after"))) from error
            raise ChatError(message) from error
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            raise Busy(f"a reply that is none ({brief(error)})") from error
        return as_reply(found, c.model)

    def wait_for_turn(self) -> None:
        """Spaces requests so that no more than `per_minute` begin in a minute."""
        with self.gate:
            now = time.monotonic()
            turn = max(self.next, now)
            self.next = turn + 60.0 / self.config.per_minute
        time.sleep(max(0.0, turn - now))


def seconds(header: str | None) -> float | None:
    """A Retry-After header that is a number."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def as_reply(found, model: str) -> Reply:
    choices = getattr(found, "choices", None)
    if not choices or choices[0].message is None:
        raise ChatError("a reply without choices")
    message, usage = choices[0].message, found.usage
    if getattr(message, "refusal", None):
        raise ChatError(f"the model refuses ({str(message.refusal)[:80]})")
    if not message.content:
        raise ChatError("an empty reply")
    return Reply(
        message.content,
        found.model or model,
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
    )


def brief(error: BaseException) -> str:
    """What the server said, or else an error's first line, shortened."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    return (str(said or error).strip().splitlines() or [type(error).__name__])[0][:120]

"""A chat model behind any OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp's server, Ollama."""

import concurrent.futures
import dataclasses
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.versions import install_command

if TYPE_CHECKING:
    import tenacity

MAX_PAUSE = 60.0  # seconds between two attempts, also if the server asks for more


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Which chat model is asked, and how."""

    base_url: str | None = None  # e.g. http://localhost:8000/v1; None: OpenAI
    model: str = "gpt-4o-mini"  # name on the server
    # environment variable that holds the API key; a local server needs none
    key: str = "OPENAI_API_KEY"
    temperature: float = 0.7  # sampling temperature
    max_tokens: int = 600  # maximum length of a reply
    timeout: float = 60.0  # seconds for a complete reply
    # after rate limits, server errors, dropped connections and time-outs; the pauses between
    # attempts grow, or are those that the server asks for
    retries: int = 4
    per_minute: float = 60.0  # maximum number of requests per minute
    concurrency: int = 4  # requests in flight at once
    price_in: float = 0.0  # dollars per million input tokens, for --estimate
    price_out: float = 0.0  # dollars per million output tokens, for --estimate


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply, the model as the server names it, and the tokens used."""

    text: str
    model: str
    tokens_in: int
    tokens_out: int


class ChatError(Exception):
    """A request got no reply after all retries. Another request may succeed."""


class TransientError(ChatError):
    """An attempt failed but may be repeated, after `pause` seconds if the server names them."""

    def __init__(self, message: str, pause: float | None = None):
        super().__init__(message)
        self.pause = pause


class UnreachableError(TransientError):
    """No connection to the server."""


class Chat:
    """Sends requests to a chat model; thread-safe.

    The openai client's own retries are off (max_retries=0): they bypass the limit of requests per
    minute, do not cover replies that are malformed or too slow, and repeat after a used-up quota.
    """

    def __init__(self, config: ChatConfig):
        """Raises UserError if the openai client, or the API key that OpenAI needs, is missing."""
        try:
            import openai  # noqa: F401
            import tenacity
        except ImportError as error:
            raise UserError(
                f"a chat model needs the package {error.name}: {install_command('synthesis')}"
            ) from error
        if config.base_url is None and not os.environ.get(config.key):
            raise UserError(
                "--chat.base-url is not given, so OpenAI would be asked, but the environment has "
                f"no {config.key}; set it, or name a local server"
            )
        self.config, self.server = config, config.base_url or "OpenAI"
        self.lock, self.next_start = threading.Lock(), 0.0
        self.has_answered = False  # so the address is right
        self.retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(1 + config.retries),
            wait=pause_before_retry,
            reraise=True,
        )

    def ask(self, messages: list[dict]) -> Reply:
        """The model's reply to a conversation.

        Raises ChatError if this request gets none, and UserError if no further request can succeed
        either: wrong key, model or address, used-up quota.
        """
        try:
            return self.retrying(self.attempt, messages)
        except UnreachableError as error:
            if self.has_answered:
                raise
            raise UserError(
                f"--chat.base-url: {error}, and has not answered at all; start it, or name another"
            ) from error

    def attempt(self, messages: list[dict]) -> Reply:
        """One request, ended after `timeout` seconds.

        The client's own time-out is one between two bytes, so a slow stream never reaches it. Only
        closing a client ends its request, so every request has a client of its own.
        """
        import openai

        self.wait_for_turn()
        client = openai.OpenAI(
            base_url=self.config.base_url,
            api_key=os.environ.get(self.config.key) or "none",
            timeout=self.config.timeout,
            max_retries=0,
        )
        pool = concurrent.futures.ThreadPoolExecutor(1)
        try:
            return pool.submit(self.request, client, messages).result(self.config.timeout)
        except concurrent.futures.TimeoutError as error:
            raise TransientError(f"no whole reply within {self.config.timeout:g} s") from error
        finally:
            client.close()
            pool.shutdown(wait=False)

    def request(self, client: Any, messages: list[dict]) -> Reply:
        """Sends the request and translates the client's errors into ours."""
        import openai

        config = self.config
        try:
            completion = client.chat.completions.create(
                model=config.model,
                messages=messages,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
            )
            self.has_answered = True
        except openai.APITimeoutError as error:
            raise TransientError(f"no reply within {config.timeout:g} s") from error
        except openai.APIConnectionError as error:
            cause = summary(error.__cause__ or error)
            raise UnreachableError(f"{self.server} cannot be reached ({cause})") from error
        except openai.APIStatusError as error:
            raise self.status_error(error) from error
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            raise TransientError(f"a malformed reply ({summary(error)})") from error
        return read_completion(completion, config.model)

    def status_error(self, error: Any) -> Exception:
        """The error for a reply with a status code (openai.APIStatusError)."""
        import openai

        cause = summary(error)
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            return UserError(f"{self.server} refuses the key of {self.config.key} ({cause})")
        if isinstance(error, openai.NotFoundError):
            return UserError(
                f"{self.server} knows no model {self.config.model!r} ({cause}); "
                "name another with --chat.model"
            )
        self.has_answered = True
        if error.code == "insufficient_quota":
            return UserError(
                f"{self.server}: the quota of {self.config.key} is used up ({cause}); finished "
                "clips are kept: continue with more quota, or another key"
            )
        message = f"status {error.status_code} ({cause})"
        if error.status_code in (408, 409, 429) or error.status_code >= 500:
            return TransientError(message, retry_after(error.response.headers.get("retry-after")))
        return ChatError(message)

    def wait_for_turn(self) -> None:
        """Waits so that at most `per_minute` requests start in a minute."""
        with self.lock:
            now = time.monotonic()
            start = max(self.next_start, now)
            self.next_start = start + 60.0 / self.config.per_minute
        time.sleep(max(0.0, start - now))


def pause_before_retry(state: "tenacity.RetryCallState") -> float:
    """Seconds: as the server asks, else 0.5, 1, 2, ...; at most MAX_PAUSE."""
    error = state.outcome.exception() if state.outcome else None
    pause = error.pause if isinstance(error, TransientError) else None
    return min(MAX_PAUSE, 0.5 * 2 ** (state.attempt_number - 1) if pause is None else pause)


def retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header; None if it is no number."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def read_completion(completion: Any, model: str) -> Reply:
    """The reply in a ChatCompletion; ChatError if the model refuses or says nothing."""
    choices = getattr(completion, "choices", None)
    if not choices or choices[0].message is None:
        raise ChatError("a reply without choices")
    message, usage = choices[0].message, completion.usage
    if getattr(message, "refusal", None):
        raise ChatError(f"the model refuses ({str(message.refusal)[:80]})")
    if not message.content:
        raise ChatError("an empty reply")
    return Reply(
        message.content,
        completion.model or model,
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
    )


def summary(error: BaseException) -> str:
    """The server's message, or else the error's first line; at most 120 characters."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return (str(message or error).strip().splitlines() or [type(error).__name__])[0][:120]

"""No secret and no control character leaves the process in a text."""

import threading
import time
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redisq import Failure, protect, redact, redaction
from redisq.redaction import is_harmless

SECRET = "s3cr3t-Canary"
TRICKY = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "password",
                "PA\u017f\u017fWD",
                "\u017fecret",
                "to\u212aen",
                "authorization",
                "author\u0131zation",
                "COOK\u0130E",
                "API-\u212aEY",
                "api_key",
                "dsn",
            ]
        ),
        st.sampled_from(
            ["appsecret_proof", "cookie", "=", ": ", " ", '"', "redis", "://", "me", "@", "\n", "\x1b", "\u2028"]
        ),
        st.text(max_size=3),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(autouse=True)
def _nothing_protected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(redaction, "_secrets", ())
    return


@pytest.mark.parametrize(
    "text",
    [
        f"redis://:{SECRET}@host:6379/0",
        f"cannot reach redis://user:{SECRET}@host",
        f"POSTGRESQL://user:{SECRET}@host/db?sslmode=require",
        f"rediss://user:p@{SECRET}@host",  # an @ that should have been quoted
        f"http://proxy:{SECRET}@[::1]:8080/",
        f"host=db password={SECRET} dbname=x",
        f"host=db password='two words {SECRET}' dbname=x",
        f'{{"password": "{SECRET}"}}',
        f"{{'client_secret': '{SECRET}'}}",
        f"GET /v1/me?access_token={SECRET}&fields=id",
        f"input_token={SECRET}",
        f"page_token: {SECRET}",
        f"PGPASSWORD={SECRET} psql",
        f"fb_exchange_token={SECRET}, appsecret_proof={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}",
        f'"Authorization": "Bearer {SECRET}"',
        f"Set-Cookie: a=b; session={SECRET}; Path=/",
        f"x-api-key: {SECRET}",
        f"apikey={SECRET}",
        f"dsn = {SECRET}",
        f"TOKEN={SECRET}",
        f"author\u0131zation: Bearer {SECRET}",
        f"COOK\u0130E: {SECRET}",
    ],
)
def test_a_secret_is_known_by_what_stands_before_it(text: str) -> None:
    """An error of a library quotes what it was given, and nobody has told us that it is a secret."""
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "token_expired",
        "token_expired: connect the page again",
        "no secret of yours was used",
        "https://graph.example/v1/me: 404",
        "redis://host:6379/0 is away",
        "http://[::1]:8080/path",
        "3 tokens: one, two, three",
        "a line\n\tand another",
        "ไทย ñ 🎉",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    """Whoever looks for a cause must find it."""
    assert redact(text) == text


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TRICKY)
def test_what_is_not_searched_for_is_not_there(text: str) -> None:
    """The look that spares a search must not be blind to anything that the search would find."""
    searched = redaction._URL_PASSWORD.sub(r"\g<scheme>:***@", text)
    searched = redaction._NAMED.sub(r"\g<name>\g<cookie>***", searched)
    assert redact(text) == redaction._CONTROL.sub("\N{REPLACEMENT CHARACTER}", searched)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(TRICKY, st.just(f"org {SECRET}"), st.just("x" * 1990)), max_size=4))
def test_parts_of_what_is_harmless_need_not_be_redacted(texts: list[str]) -> None:
    """A line of a log is looked at once, as a whole, before its fields are."""
    protect(SECRET)
    if is_harmless(" ".join(texts)):
        assert [redact(text) for text in texts] == texts


def test_a_usual_line_is_harmless() -> None:
    """Else each of its fields would be searched, for each job."""
    assert is_harmless("INFO redisq.worker job done org1 page-1 2026-01-01 ingest:page-1:2026-01-01 default")


def test_a_protected_value_is_gone_wherever_it_is() -> None:
    """Also where nothing names it."""
    protect(SECRET)
    assert redact(f"no route for {SECRET}{SECRET}/x") == "no route for ******/x"


def test_a_secret_that_is_learnt_later_is_found_in_a_text_seen_before() -> None:
    """Whatever was found out about a text before, it may have held what nobody knew to be a secret."""
    assert redact(f"page {SECRET}") == f"page {SECRET}"
    protect(SECRET)
    assert redact(f"page {SECRET}") == "page ***"


def test_one_secret_may_begin_another() -> None:
    """Whichever is replaced first, nothing of the longer one may be left over."""
    for n in range(20):
        protect(f"{SECRET}{'x' * n}")
    assert redact(f"<{SECRET}{'x' * 19}>") == "<***>"


@pytest.mark.parametrize("nothing", [None, "", "abc"])
def test_what_is_too_short_to_be_a_secret_hides_nothing(nothing: str | None) -> None:
    """An empty password would put stars between all letters."""
    protect(nothing)
    assert redact("abc def") == "abc def"


def test_a_secret_may_be_protected_while_others_write() -> None:
    """Tokens are read in one slot while another one logs."""
    stop = threading.Event()

    def protect_more() -> None:
        for n in range(2000):
            protect(f"{SECRET}{n}")
        stop.set()

    threading.Thread(target=protect_more).start()
    while not stop.is_set():
        redact("a line of a log")


@pytest.mark.parametrize("character", ["\x1b", "\x00", "\r", "\x7f", "\x9b", "\u2028", "\u202e", "\udc80"])
def test_control_characters_are_replaced(character: str) -> None:
    """A dead letter's reason must not move the cursor of the terminal that shows it, nor be no text at all."""
    assert redact(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_a_text_is_cut_after_it_is_redacted() -> None:
    """The cut must not leave half a secret that nobody recognises."""
    protect(SECRET)
    assert redact("x" * 8 + SECRET, limit=12) == "x" * 8 + "***"
    assert redact("x" * 20, limit=12) == "x" * 11 + "…"
    assert len(redact("x" * 100_000)) == 2000


@pytest.mark.parametrize(
    "unit", ["x", "x.", "a-", "x://a:", "token=", "token='", "token ", "password: ", "://", "cookie", "é", "\x00", "\n"]
)
def test_a_long_text_costs_little(unit: str) -> None:
    """A handler's error may quote a megabyte: the worker that settles it, and its heartbeat, must not wait for us."""
    text = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    redact(text)
    assert time.process_time() - begin < 1.0


def test_a_failure_is_stored_redacted_and_readable() -> None:
    """What is kept with the job is seen by everybody who may look at the queue."""
    protect(SECRET)
    record = Failure("transient", f"reason {SECRET}", f"detail \udc80 {SECRET}", f"line 1\n{SECRET}").record(worker="w")
    assert SECRET.encode() not in record
    assert orjson.loads(record)["detail"] == "detail \N{REPLACEMENT CHARACTER} ***"

"""No secret and no control character leaves the process in a text."""

import json
import re
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redisq import Failure, protect, redact, redaction
from redisq.redaction import is_harmless

SECRET = "s3cr3t-Canary"
# What a terminal does not show, or acts upon.
UNSHOWN = [
    *(
        "\x1b[0m",
        "\x1b[38;5;1m",
        "\x9b1m",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x1b(B",
        "\x00",
        "\x08",
        "\r",
    ),
    *("\u200b", "\u200d", "\ufeff", "\u2060", "\xad", "\u202e", "\u2066", "\u200e", "\u061c", "\U000e0041", "\udc80"),
    *("\u034f", "\u115f", "\u17b4", "\u180b", "\u2065", "\u2800", "\u3164", "\ufe0f", "\uffa0", "\ufff0"),
    *("\U0001bca0", "\U0001d173", "\U000e0100"),
]
# What a very long text may be made of.
UNITS = [
    *("x", "x.", "a-", "x://a:", "token=", "token='", "token ", "password: ", "://", "cookie", "é", "\x00", "\n"),
    *("Bearer ", "oauth a1", "EAAa", "%3D", "token%3D", "\\", 'token":\\"', "token: a ", "password: a b", "_key="),
    *("\x1b[", "\x1b]", "\u200b", f"EAA{'a' * 30} "),
]
# What providers, stores and we say. Each is shown to people as it is.
SENTENCES = [
    "Error validating access token: the session is no longer valid.",
    "Error validating access token: Session has expired on Thursday, 01-Jan-26 01:00:00 PST. The current time is now.",
    "Error validating access token: The user has not authorized application 123.",
    "Error validating access token: The session has been invalidated because the user changed their password.",
    "Error validating access token: You cannot access the app till you log in to www.facebook.com and follow it.",
    "Error validating access token: This may be because the user logged out or may be due to a system error.",
    "Error validating access token: Sessions for the user are not allowed because the user is not a confirmed user.",
    "Error validating application. Cannot get application info due to a system error.",
    "Error validating client secret.",
    "Invalid OAuth access token signature.",
    "Invalid OAuth 2.0 Access Token",
    "Invalid OAuth access token - Cannot parse access token",
    "Malformed access token",
    "An access token is required to request this resource.",
    "The access token could not be decrypted",
    "API calls from the server require an appsecret_proof argument",
    "Invalid appsecret_proof provided in the API argument",
    "(#190) This method must be called with a Page Access Token",
    "(#200) Requires pages_read_engagement permission to manage the object; OAuth authorization is needed",
    "OAuthException: Bearer tokens, not OAuth tokens, are wanted",
    "cannot use the token: expired",
    "the token: it's gone",
    "authorization: the owner must allow it",
    "password: the owner has changed it",
    "token key: opens the stored tokens",
    "token-key: a key is not 32 bytes in URL-safe base64",
    "WRONGPASS invalid username-password pair or user is disabled.",
    'connection failed: FATAL:  password authentication failed for user "redisq"',
    "fe_sendauth: no password supplied",
    'duplicate key value violates unique constraint "integration_pkey" DETAIL:  Key (id)=(fb-1) already exists.',
    "there is no token key: put one into a file and name it in REDISQ_TOKEN_KEY_FILE",
    "redisq integration reconnect fb-1 --token-file token",
    "Basic authentication is no longer supported",
]

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
                "EAA" + "a1" * 10,
                "Bearer ",
                "oAuth ",
                "a1b2c3",
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
        f"pwd={SECRET}",
        f"postgresql://host/db?sslpassword={SECRET}",
        f"TOKEN_KEY={SECRET}",
        f"aws_secret_access_key: {SECRET}",
        f"passphrase: {SECRET}",
        f"password: {SECRET} was refused",
        f"https://example/?next=%2Fme%3Faccess_token%3D{SECRET}%26fields%3Did",
        f"https://example/?next=access_token%253D{SECRET}",
        f"%7B%22access_token%22%3A%22{SECRET}%22%7D",
        f'{{"body": "{{\\"access_token\\": \\"{SECRET}\\"}}"}}',
        f'{{"a": "{{\\"b\\": \\"{{\\\\\\"app_secret\\\\\\":\\\\\\"{SECRET}\\\\\\"}}\\"}}"}}',
        f'{{"password": "a\\"{SECRET}"}}',
        f"password='cut off {SECRET}",
        f"Bearer {SECRET}1",
        f"sent with oauth {SECRET}",
        f"Authorization%3A%20Bearer%20{SECRET}",
        f"pass\x1b[1mword={SECRET}",
        f"to\u200bken: {SECRET}",
        f"{{b'access_token': b'{SECRET}'}}",
        f"'token' => '{SECRET}'",
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
        *SENTENCES,
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    """Whoever looks for a cause must find it."""
    assert redact(text) == text


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TRICKY)
def test_what_is_not_searched_for_is_not_there(text: str) -> None:
    """The look that spares a search must not be blind to anything that the search would find."""
    bare = redaction._CONTROL.sub("", redaction._UNSEEN.sub("", text))
    searched = redaction._URL_PASSWORD.sub(r"\g<scheme>:***@", bare)
    searched = redaction._NAMED.sub(r"\g<name>\g<cookie>***", searched)
    searched = redaction._SHAPED.sub(r"\g<scheme>***", searched)
    assert redact(bare) == searched


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


@pytest.mark.parametrize("text", ["EAA" + "bC3" * 7, f"in EAAB{'x' * 40}, and", "x=%22EAA" + "9" * 20])
def test_a_token_of_the_provider_is_known_by_its_shape(text: str) -> None:
    """It may come from a page of somebody else, in the middle of what nobody understands."""
    assert "***" in redact(text)
    assert "EAA" not in redact(text)


@pytest.mark.parametrize("acts", UNSHOWN)
def test_what_a_terminal_does_not_show_hides_no_secret(acts: str) -> None:
    """On the screen, and in what is copied from it, the secret would be whole."""
    protect("s3cr3tCanary")
    for text in (f"is s3cr3t{acts}Canary", acts.join("s3cr3tCanary"), f"{acts}a\ns3c{acts}{acts}r3tCanary\n"):
        assert "***" in redact(text)
        assert not {"s3cr3t", "Canary"} & set(redact(text).split())
    assert redact(f"{acts}EAA{acts}{acts.join('a1' * 20)}") == "***"


@pytest.mark.parametrize(
    "secret", [SECRET, "p/a:s s@w%r+d", 'quo"te\\', "pässwörd", "1234", "\x01\n\u200bab", "\udcffabc"]
)
def test_a_protected_value_is_gone_in_each_form_that_a_text_may_quote(secret: str) -> None:
    """Libraries quote an address, a body or a header as they sent it."""
    protect(secret)
    raw = secret.encode("utf-8", "surrogatepass")
    for form in (
        secret,
        json.dumps(secret),
        quote(raw),
        quote(raw, safe=""),
        quote(quote(raw, safe=""), safe=""),
        quote_plus(raw),
        re.sub("%..", lambda found: found.group().lower(), quote(raw, safe="")),
        b64encode(raw + b"0123").decode() if len(raw) > 4 else secret,
        *(b64encode(b"user:"[:n] + raw + b":x").decode() for n in range(6) if len(raw) > 6),
        *(urlsafe_b64encode(b"user:"[:n] + raw + b":x").decode() for n in range(6) if len(raw) > 6),
    ):
        assert "***" in redact(f"<{form}>"), form
        assert redact(f"<{form}>", also=[secret]) == redact(f"<{form}>")


def test_a_secret_may_be_named_for_one_text() -> None:
    """A page's token is nobody else's business: with ten thousand of them each line would be searched for all."""
    assert redact(f"no route for {SECRET}", also=[SECRET]) == "no route for ***"
    assert redact(f"no route for {SECRET}") == f"no route for {SECRET}"


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


def test_what_joins_or_breaks_words_leaves_no_mark() -> None:
    """Names in some languages have it, and nothing is missing without it."""
    assert redact("ม\u200bา \U0001f468\u200d\U0001f469 \ufeffx") == "มา \U0001f468\U0001f469 x"


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


@pytest.mark.parametrize("unit", UNITS)
def test_a_long_text_costs_little(unit: str) -> None:
    """A handler's error may quote a megabyte: the worker that settles it, and its heartbeat, must not wait for us."""
    text = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    redact(text)
    assert time.process_time() - begin < 1.0


def test_a_failure_is_stored_redacted_and_readable() -> None:
    """What is kept with the job is seen by everybody who may look at the queue."""
    protect(SECRET)
    record = Failure("transient", f"reason {SECRET}", f"detail \udc80 {SECRET}", f"line 1\n{SECRET}").record()
    assert SECRET.encode() not in record
    assert orjson.loads(record)["detail"] == "detail \N{REPLACEMENT CHARACTER} ***"

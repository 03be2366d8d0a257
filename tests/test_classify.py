"""The class of an answer comes from the code in its body, whatever else is said around it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import ProtocolError

from jobs.providers.classify import Failure, UnusableBody, classify

TRANSIENT, LIMITED, PERMANENT = "transient", "rate_limited", "permanent"

# code, subcode -> class, reason, needs reconnect: the table of the Graph API's errors.
KNOWN: dict[tuple[int, int | None], tuple[str, str, bool]] = {
    (1, None): (TRANSIENT, "server", False),
    (1, 99): (TRANSIENT, "server", False),
    (2, None): (TRANSIENT, "server", False),
    **{(code, None): (PERMANENT, "app", False) for code in (3, 12, 101, 104)},
    **{(code, None): (LIMITED, "rate_limited", False) for code in (4, 17, 32, 341, 613)},
    **{(code, None): (LIMITED, "rate_limited", False) for code in range(80000, 80015)},
    (613, 1996): (LIMITED, "abrupt_volume", False),
    (80004, 2446079): (LIMITED, "rate_limited", False),
    (368, None): (LIMITED, "policy_block", False),
    (10, None): (PERMANENT, "permission", True),
    **{(code, None): (PERMANENT, "permission", True) for code in (200, 210, 275, 299)},
    (100, None): (PERMANENT, "request", False),
    (100, 33): (PERMANENT, "object_not_found", False),
    (100, 1487534): (TRANSIENT, "reduce_request", False),
    (102, None): (PERMANENT, "token_invalid", True),
    (960, None): (TRANSIENT, "network", False),
    (190, None): (PERMANENT, "token_invalid", True),
    (190, 458): (PERMANENT, "token_app_removed", True),
    (190, 459): (PERMANENT, "token_checkpoint", True),
    (190, 460): (PERMANENT, "token_password_changed", True),
    (190, 463): (PERMANENT, "token_expired", True),
    (190, 464): (PERMANENT, "token_unconfirmed", True),
    (190, 467): (PERMANENT, "token_invalid", True),
    (190, 492): (PERMANENT, "no_page_role", True),
    (190, 493): (PERMANENT, "data_access_expired", True),
    **{(code, None): (PERMANENT, "request", False) for code in (506, 803, 1609005)},
    (2500, None): (PERMANENT, "request", False),
    (3001, 1504028): (PERMANENT, "request", False),
}

# Texts that would mislead whoever looks for numbers or words in them.
DECOYS = (
    "",
    "Error validating access token 190 for page 246675545449582_490190 (#10) (#200)",
    "โทเค็นการเข้าถึงไม่ถูกต้อง รหัส 190",
    "An unknown error occurred (code 2), rate limit 4, permission 10",
    "Please reduce the amount of data you're asking for, then retry your request",
    "(#100) The value must be a valid insights metric",
    "Error validating access token: The user has not authorized application 123.",
)


def error_body(code: int, subcode: int | None = None, message: str = "", **more: object) -> bytes:
    error = {"message": message, "code": code, "fbtrace_id": "A190x490", **more}
    if subcode is not None:
        error["error_subcode"] = subcode
    return json.dumps({"error": error}).encode()


def judge(status: int, body: bytes, **headers: str) -> Failure:
    outcome = classify(status, headers, body, None)
    assert isinstance(outcome, Failure)
    return outcome


@pytest.mark.parametrize(("code", "subcode"), KNOWN)
def test_known_code_has_its_class_and_reason(code: int, subcode: int | None) -> None:
    """A wrong class either disables a healthy page or asks a dead one for ever."""
    failure = judge(400, error_body(code, subcode))
    assert (failure.error_class, failure.reason, failure.needs_reconnect) == KNOWN[code, subcode]
    assert (failure.code, failure.subcode, failure.http_status) == (code, subcode, 400)
    assert failure.trace_id == "A190x490"


@given(
    known=st.sampled_from(sorted(KNOWN, key=str)),
    status=st.integers(200, 503),
    text=st.sampled_from(DECOYS) | st.text(),
    kind=st.sampled_from(["OAuthException", "GraphMethodException", "FacebookApiException", None]),
)
def test_status_and_text_never_change_the_class_of_a_known_code(
    known: tuple[int, int | None], status: int, text: str, kind: str | None
) -> None:
    """Code 2 was seen under 401, 4 under 403 and errors under 200; texts come in the language of the user."""
    error_class, _, needs_reconnect = KNOWN[known]
    failure = judge(status, error_body(*known, text, type=kind, error_user_msg=text))
    assert (failure.error_class, failure.needs_reconnect) == (error_class, needs_reconnect)


def test_ids_of_real_posts_never_change_the_class(shared_data: Path) -> None:
    """Dozens of these ids contain 490, and others 190 or 200: a classifier by substring trips on them."""
    posts = (shared_data / "thai-facebook-live-sellers" / "Live.csv").read_text().splitlines()
    ids = {post_id for post_id in (line.partition(",")[0] for line in posts) if "490" in post_id}
    assert len(ids) > 80
    for post_id in ids:
        failure = judge(400, error_body(2, message=f"Object {post_id} failed", fbtrace_id=post_id))
        assert (failure.error_class, failure.needs_reconnect) == (TRANSIENT, False)


@pytest.mark.parametrize("code", [10, 100, 190, 200, 3, 803, 987654])
def test_is_transient_outranks_a_permanent_code(code: int) -> None:
    """The provider says itself that it will pass; a token verdict would cost the owner a reconnect."""
    failure = judge(401, error_body(code, is_transient=True))
    assert (failure.error_class, failure.needs_reconnect) == (TRANSIENT, False)


def test_rate_limit_outranks_is_transient() -> None:
    """Both retry, but a limited app that is asked again after seconds is blocked for longer."""
    assert judge(400, error_body(4, is_transient=True)).error_class == LIMITED


@pytest.mark.parametrize(
    ("status", "error_class", "reason"),
    [
        (200, PERMANENT, "unclassified"),
        (400, PERMANENT, "unclassified"),
        (401, PERMANENT, "unclassified"),
        (429, LIMITED, "rate_limited"),
        (500, TRANSIENT, "server"),
        (503, TRANSIENT, "server"),
    ],
)
def test_unknown_code_is_judged_by_status_and_keeps_its_code(status: int, error_class: str, reason: str) -> None:
    """A code of next year must not mark pages, and must be there to look up."""
    failure = judge(status, error_body(987654))
    assert (failure.error_class, failure.reason, failure.code) == (error_class, reason, 987654)
    assert not failure.needs_reconnect


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (400, error_body(3), "app"),
        (400, error_body(100, message="API calls from the server require an appsecret_proof argument"), "app"),
        (400, error_body(100), "unclear"),
        (400, error_body(100, message="(#100) The value must be a valid insights metric"), "unclear"),
        (400, error_body(101), "app"),
        (400, error_body(104, message="An access token is required to request this resource."), "app"),
        (400, error_body(190, message="Error validating application. Application has been deleted."), "app"),
        (400, error_body(190, 463, "Error validating application."), "page"),
        (400, error_body(190, 458, "The user has not authorized application 123"), "page"),
        (
            400,
            error_body(190, message="Error validating access token: The user has not authorized application 1"),
            "unclear",
        ),
        (400, error_body(190), "unclear"),
        (400, error_body(190, 99999), "unclear"),
        (400, error_body(102), "unclear"),
        (403, error_body(10), "unclear"),
        (403, error_body(200), "unclear"),
        (403, error_body(299), "unclear"),
        (403, error_body(200, 492), "page"),
        (400, error_body(987654), "unclear"),
        (404, b"<html>no such route</html>", "unclear"),
        (400, error_body(803), "page"),
        (400, error_body(100, 33), "page"),
        (400, error_body(190, 463), "page"),
    ],
)
def test_a_refusal_is_the_pages_own_only_when_it_says_so(status: int, body: bytes, fault: str) -> None:
    """A page is given up at its first call for a fault of its own: for one of ours, thousands would be."""
    assert judge(status, body).fault == fault


@pytest.mark.parametrize("body", [b"", b"<html>490 190</html>", b"{", b"[]", b'{"error":"190"}', b"\xff", b"[" * 9999])
@pytest.mark.parametrize(
    ("status", "error_class", "reason"),
    [
        (200, TRANSIENT, "malformed"),
        (302, TRANSIENT, "malformed"),
        (401, TRANSIENT, "malformed"),
        (403, TRANSIENT, "malformed"),
        (404, PERMANENT, "unclassified"),
        (408, TRANSIENT, "server"),
        (425, TRANSIENT, "server"),
        (429, LIMITED, "rate_limited"),
        (500, TRANSIENT, "server"),
        (502, TRANSIENT, "server"),
        (503, TRANSIENT, "server"),
    ],
)
def test_answer_without_an_error_object_is_judged_by_status(
    status: int, error_class: str, reason: str, body: bytes
) -> None:
    """A proxy's 401 page says nothing about the token."""
    failure = judge(status, body)
    assert (failure.error_class, failure.reason, failure.needs_reconnect) == (error_class, reason, False)


@pytest.mark.parametrize("body", [b"{}", b'{"data": null}', b'{"data": {}}', b'{"data": ["\xff"]}'])
def test_success_without_a_list_of_data_is_malformed(body: bytes) -> None:
    """It would be stored as a day without data."""
    assert judge(200, body).reason == "malformed"


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e99999999999999999999", "9" * 5000, "-" + "9" * 5000])
def test_one_number_that_cannot_be_read_leaves_the_document(number: str) -> None:
    """The other numbers of the answer are kept to the last digit."""
    document = classify(200, {}, f'{{"data": [{number}, 9007199254740993, 0.1]}}'.encode(), None)
    assert isinstance(document, dict)
    odd, *sound = document["data"]
    assert isinstance(odd, float)
    assert [str(one) for one in sound] == ["9007199254740993", "0.1"]


def test_a_text_about_the_application_asks_nobody_to_connect_again() -> None:
    """If our app is switched off, connecting the page again does not help its owner."""
    failure = judge(400, error_body(190, message="Error validating application. Invalid application ID."))
    assert (failure.error_class, failure.reason, failure.needs_reconnect) == (PERMANENT, "app", False)


@pytest.mark.parametrize("code", ["190", 190])
def test_code_written_as_text_counts(code: object) -> None:
    """Some gateways turn numbers into strings."""
    assert judge(400, json.dumps({"error": {"code": code}}).encode()).reason == "token_invalid"


@pytest.mark.parametrize("code", [None, True, 1.5, [], "190abc", "1" * 5000])
def test_code_that_is_no_number_is_no_code(code: object) -> None:
    """True is 1 in Python, and code 1 would be retried."""
    failure = judge(400, json.dumps({"error": {"code": code}}).encode())
    assert (failure.reason, failure.code) == ("unclassified", None)


def test_transport_failures_are_transient() -> None:
    """No answer is no verdict."""
    for error in (ConnectionRefusedError("refused"), TimeoutError("slow"), ProtocolError("cut")):
        failure = classify(None, {}, b"", error)
        assert isinstance(failure, Failure)
        assert (failure.error_class, failure.reason) == (TRANSIENT, "network")


@pytest.mark.parametrize(
    ("status", "error_class", "reason"),
    [(200, TRANSIENT, "malformed"), (429, LIMITED, "rate_limited"), (503, TRANSIENT, "server")],
)
def test_a_body_that_is_of_no_use_leaves_the_status(status: int, error_class: str, reason: str) -> None:
    """An overloaded server may send a broken page, and the status still tells that it is overloaded."""
    failure = classify(status, {}, b"", UnusableBody("too large"))
    assert isinstance(failure, Failure)
    assert (failure.error_class, failure.reason) == (error_class, reason)


def test_trace_id_of_an_answer_without_body_is_its_header() -> None:
    """The provider's support asks for it, and it is forgotten soon."""
    assert judge(500, b"", **{"x-fb-trace-id": "Abc"}).trace_id == "Abc"

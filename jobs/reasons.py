"""Says in plain words why a page has no number, and who must act. Every command that explains a reason asks here."""

from dataclasses import dataclass
from typing import Literal

# Who must act. Owner: connects the page again. Page admin: gives a role or right back. Operator: runs this system and
# mends it. Provider: we wait for it. Nobody: there is nothing to do.
Who = Literal["owner", "page_admin", "operator", "provider", "nobody"]

WHO_WORDS: dict[Who, str] = {
    "owner": "the owner connects the page again",
    "page_admin": "an admin of the page gives the role or right back",
    "operator": "we fix it",
    "provider": "the provider; we wait",
    "nobody": "nobody has to",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """`words` are the reason, as they could follow "because". `who` must act."""

    words: str
    who: Who


ADVICE: dict[str, Advice] = {
    # The token, the role and the rights, as the provider names them.
    "token_expired": Advice("the access to the page has expired", "owner"),
    "token_invalid": Advice("the access to the page is no longer valid", "owner"),
    "token_password_changed": Advice("the owner changed the password, which ended the access", "owner"),
    "token_app_removed": Advice("the owner removed our app", "owner"),
    "token_checkpoint": Advice("the provider wants the owner to log in and confirm", "owner"),
    "token_unconfirmed": Advice("the owner's account is not confirmed", "owner"),
    "data_access_expired": Advice("the owner's consent to read data has expired", "owner"),
    "refresh_needed": Advice("the page waits to be connected again", "owner"),
    "in_between_steps": Advice("connecting the page was begun and not finished", "owner"),
    "no_page_role": Advice("whoever connected the page has no role on it any more", "page_admin"),
    "permission": Advice("the right to read the page was taken away", "page_admin"),
    "object_not_found": Advice("the provider has no such page, or hides it from us", "page_admin"),
    # What the provider does.
    "rate_limited": Advice("the provider allows no more calls for now", "provider"),
    "rate_limited_too_long": Advice("the provider allowed no call for a whole day", "provider"),
    "policy_block": Advice("the provider has blocked calls for this page for a while", "provider"),
    "server": Advice("the provider had an error of its own", "provider"),
    "network": Advice("the provider could not be reached", "provider"),
    "provider_unreachable": Advice("the provider could not be reached", "provider"),
    "provider_away": Advice("the provider could not be reached by any page", "provider"),
    "abrupt_volume": Advice("the provider slows a page down whose calls rose abruptly", "provider"),
    "malformed": Advice("the provider's answer could not be read", "provider"),
    "reduce_request": Advice("the provider could not give so much data at once", "provider"),
    "not_yet_published": Advice("the provider has not published the day yet", "provider"),
    "not_read_yet": Advice("the day is not read yet", "nobody"),
    "unsupported_here": Advice("the provider gives this metric to other pages and not to this one", "provider"),
    "unsupported": Advice("the provider does not have this metric", "provider"),
    "unreadable": Advice("the answer is no number", "operator"),
    # What only whoever runs the system can mend.
    "app": Advice("the provider refuses our app", "operator"),
    "app_refused": Advice("the provider refuses our app", "operator"),
    "app_secret": Advice("the provider refuses the secret of our app", "operator"),
    "invalid_metric": Advice("we asked for a metric that the provider does not know", "operator"),
    "request": Advice("the provider does not understand our call", "operator"),
    "unclassified": Advice("the provider refused in a way that we do not know", "operator"),
    "unknown_provider": Advice(
        "no worker has this provider; for csv set REDISQ_CSV_DIRECTORY and restart the workers", "operator"
    ),
    "token_unreadable": Advice("the stored token does not open, `redisq doctor` says why", "operator"),
    "handler_did_not_run": Advice("a program error: the job did nothing", "operator"),
    "rows_left_out": Advice("some rows could not be read, the log names them; the others are done", "operator"),
    "bad_payload": Advice("the job's content is not valid", "operator"),
    "wrong_organization": Advice("the page belongs to another organization by now", "operator"),
    "out_of_range": Advice("the day is older than the provider keeps", "nobody"),
    "database": Advice("our database had an error", "operator"),
    "database_away": Advice("our database cannot be reached", "operator"),
    "database_lock_timeout": Advice("somebody else holds a lock in our database", "operator"),
    "database_statement_timeout": Advice("our database is too slow", "operator"),
    "database_conflict": Advice("two jobs wrote the same rows of our database at once; it runs again", "nobody"),
    "redis_away": Advice("our Redis cannot be reached, or takes nothing", "operator"),
    "database_schema": Advice("our database lacks this release's schema", "operator"),
    "database_refused": Advice("our database refused to store the answer", "operator"),
    "lease_lost": Advice("the job's worker was interrupted; it runs again", "nobody"),
    "unfinished": Advice("reading the day took longer than one attempt; it goes on", "nobody"),
    "later_day_first": Advice("the day is read together with a later one", "nobody"),
    "not_begun": Advice("the day has not begun yet", "nobody"),
    "token_changed": Advice("the page was connected again meanwhile; it runs again", "nobody"),
    "unknown_kind": Advice("no worker knows this kind of job", "operator"),
    "newer_envelope": Advice("the job was made by a newer release than the worker's", "operator"),
    "bad_envelope": Advice("the job could not be read", "operator"),
    "no_body": Advice("the job's content was lost", "operator"),
    "worker_gone": Advice("the worker that read the day disappeared; the job runs again", "nobody"),
    "crash_limit": Advice("a worker disappeared each time it read the day", "operator"),
    "time_limit": Advice("reading the day took longer than it may", "operator"),
    # What a person decided.
    "disabled": Advice("a person stopped reading the page", "nobody"),
    "moved": Advice("a person moved the page to another organization", "nobody"),
    "deleted": Advice("a person removed the page", "nobody"),
    "abandoned": Advice("a person gave the day up", "nobody"),
    "by_operator": Advice("a person cancelled the job", "nobody"),
    "read_with_later_day": Advice("the day was read together with a later one", "nobody"),
    # If the ledger has no reason for a day, its state is looked up here.
    "dead": Advice("reading it failed", "operator"),
    "skipped": Advice("the page was left out", "operator"),
    "expected": Advice("the day is not read yet", "nobody"),
}


# A page of the provider `csv` is a file of ours. What is wrong with it no provider and no admin of a page can mend.
_FILE = Advice("the file cannot be read", "operator")
_OF_FILES = frozenset({"malformed", "object_not_found", "unreadable"})


def advice_for(reason: str, provider: str = "") -> Advice:
    """Return the words for a reason and who must act. An unknown reason is shown by its name, for the operator."""
    if provider == "csv" and reason in _OF_FILES:
        return _FILE
    return ADVICE.get(reason) or Advice(f"the reason is {reason!r}", "operator")

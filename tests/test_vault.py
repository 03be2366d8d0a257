"""Tokens are unreadable at rest, and keys can be changed while the system runs."""

import pytest
from cryptography.fernet import Fernet, InvalidToken

from jobs.vault import Vault, VaultError, checked_token
from redisq import redact, redaction

TOKEN = "EAAcanary|token"


def test_a_token_comes_back_and_is_not_readable_meanwhile() -> None:
    """That is what it is for."""
    vault = Vault([Vault.new_key()])
    sealed = vault.encrypt(TOKEN, "fb-1")
    assert TOKEN not in sealed
    assert vault.decrypt(sealed, "fb-1") == TOKEN


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    """A rotation needs no moment at which everything changes together."""
    old, new = Vault.new_key(), Vault.new_key()
    both = Vault.from_text(f"# since March\n{new}\n\n  {old}\n")
    assert both.decrypt(Vault([old]).encrypt(TOKEN, "fb-1"), "fb-1") == TOKEN
    assert Vault([new]).decrypt(both.encrypt(TOKEN, "fb-1"), "fb-1") == TOKEN


def test_a_rotated_token_needs_the_old_key_no_more() -> None:
    """Until then the old key cannot be destroyed."""
    old, new = Vault.new_key(), Vault.new_key()
    rotated = Vault([new, old]).rotate(Vault([old]).encrypt(TOKEN, "fb-1"), "fb-1")
    assert Vault([new]).decrypt(rotated, "fb-1") == TOKEN


@pytest.mark.parametrize(
    "tampered",
    [
        lambda sealed: sealed[:-4] + "AAA=",
        lambda _: "gAAAAnonsense",
        lambda _: "\u00e9",
        lambda _: "",
        lambda _: "bound:",
        lambda _: "bound:\u00e9",
    ],
)
def test_what_no_key_opens_is_an_error_without_the_token(tampered) -> None:  # type: ignore[no-untyped-def]
    """The error is logged and kept with the job."""
    vault = Vault([Vault.new_key()])
    sealed = tampered(vault.encrypt(TOKEN, "fb-1"))
    with pytest.raises(VaultError) as error:
        vault.decrypt(sealed, "fb-1")
    assert str(error.value).startswith("page fb-1: no key of the key file opens this token; ")
    assert "`redisq integration reconnect fb-1`" in str(error.value)


def test_a_token_opens_for_its_own_page_alone() -> None:
    """Whoever may write the database could else read a page with the token of another."""
    vault = Vault([Vault.new_key()])
    sealed = vault.encrypt(TOKEN, "fb-1")
    with pytest.raises(VaultError) as error:
        vault.decrypt(sealed, "fb-2")
    assert str(error.value) == (
        "page fb-2: this token was stored for another page, fb-1; connect the page again with"
        " `redisq integration reconnect fb-2`"
    )


def test_a_rotation_leaves_a_token_with_its_page() -> None:
    """It must not make a copy in a foreign row right, nor stop at it."""
    vault = Vault([Vault.new_key()])
    rotated = vault.rotate(vault.encrypt(TOKEN, "fb-1"), "fb-2")
    assert vault.decrypt(rotated, "fb-1") == TOKEN
    with pytest.raises(VaultError, match="stored for another page, fb-1"):
        vault.decrypt(rotated, "fb-2")


def test_a_token_of_an_earlier_release_opens_and_a_rotation_binds_it() -> None:
    """An upgrade must not make the owners of ten thousand pages connect them again."""
    old, new = Vault.new_key(), Vault.new_key()
    vault, stored = Vault([new, old]), Fernet(old).encrypt(TOKEN.encode()).decode()
    assert vault.decrypt(stored, "fb-1") == TOKEN
    assert not vault.is_bound(stored)
    bound = vault.rotate(stored, "fb-1")
    assert vault.is_bound(bound)
    assert Vault([new]).decrypt(bound, "fb-1") == TOKEN


def test_a_bound_token_is_nothing_to_an_earlier_release() -> None:
    """It would send the provider something else than the token, and lose the page for it."""
    key = Vault.new_key()
    with pytest.raises(InvalidToken):
        Fernet(key).decrypt(Vault([key]).encrypt(TOKEN, "fb-1"))


def test_each_line_of_a_key_file_is_a_protected_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that only decrypts."""
    monkeypatch.setattr(redaction, "_secrets", ())
    keys = [Vault.new_key(), Vault.new_key()]
    Vault.from_text(f"# the new one\n{keys[0]}\n\n {keys[1]} \n")
    assert redact(f"a {keys[0]} b {keys[1]}") == "a *** b ***"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "is empty"),
        (b" \r\n\n", "is empty"),
        (b"\xef\xbb\xbfEAAcanary", "byte order mark"),
        ("EAAcanary\n".encode("utf-16"), "not UTF-8"),
        (b"EAAcan\xffary", "not UTF-8"),
        (b"Bearer EAAcanary\n", 'the word "Bearer"'),
        (b"oauth\tEAAcanary", 'the word "Oauth"'),
        (b"access_token=EAAcanary", 'the word "Access_token"'),
        (b"token: EAAcanary", 'the word "Token"'),
        (b" EAAcanary\n", "a blank"),
        (b"EAAcanary \n", "a blank"),
        (b"EAA canary", "a blank"),
        ("EAA\u00a0canary".encode(), "a blank"),
        (b"\nEAAcanary", "2 lines"),
        (b"EAAcanary\r\nEAAother\r\n", "2 lines"),
        ("EAA\u200bcanary".encode(), "cannot be seen"),
        ("EAAcanary\u2060".encode(), "cannot be seen"),
        (b"EAA\x00canary", "cannot be seen"),
        (b"EAA\x1b[0mcanary", "cannot be seen"),
        ("EAA\u2013canary".encode(), "no token has"),
        (b'"EAAcanary"', "quotation mark"),
        (b'{"access_token":"EAAcanary"}', "bracket"),
        (b"EAAcanary" * 1000, "4,096"),
        ("EAAcan\udcffary", "cannot be seen"),
    ],
)
def test_what_cannot_be_a_token_is_refused_by_a_sentence_without_it(given: bytes | str, says: str) -> None:
    """Whoever pasted it learns what to mend; the provider would only say that it is not valid, the next morning."""
    with pytest.raises(ValueError, match=r"^the token ") as error:
        checked_token(given)
    assert says in str(error.value)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_token_comes_without_the_end_of_its_line(end: str) -> None:
    """Editors and `echo` add one."""
    assert checked_token(f"{TOKEN}{end}") == checked_token(f"{TOKEN}{end}".encode()) == TOKEN


@pytest.mark.parametrize("text", ["", "# only a comment\n", "not-a-key\n", "\u00e9\n"])
def test_a_key_file_that_cannot_be_used_is_refused_without_its_keys(text: str) -> None:
    """A wrong key file is found at the start and not at the first token."""
    with pytest.raises(VaultError) as error:
        Vault.from_text(text)
    assert "not-a-key" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_vault_does_not_show_its_keys() -> None:
    """It stands in locals of tracebacks."""
    key = Vault.new_key()
    assert key not in repr(Vault([key]))

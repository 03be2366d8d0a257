"""Tokens are unreadable at rest, and keys can be changed while the system runs."""

import pytest

from jobs.vault import Vault, VaultError

TOKEN = "EAAcanary|token"


def test_a_token_comes_back_and_is_not_readable_meanwhile() -> None:
    """That is what it is for."""
    vault = Vault([Vault.new_key()])
    sealed = vault.encrypt(TOKEN)
    assert TOKEN not in sealed
    assert vault.decrypt(sealed) == TOKEN


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    """A rotation needs no moment at which everything changes together."""
    old, new = Vault.new_key(), Vault.new_key()
    both = Vault.from_text(f"# since March\n{new}\n\n  {old}\n")
    assert both.decrypt(Vault([old]).encrypt(TOKEN)) == TOKEN
    assert Vault([new]).decrypt(both.encrypt(TOKEN)) == TOKEN


def test_a_rotated_token_needs_the_old_key_no_more() -> None:
    """Until then the old key cannot be destroyed."""
    old, new = Vault.new_key(), Vault.new_key()
    rotated = Vault([new, old]).rotate(Vault([old]).encrypt(TOKEN))
    assert Vault([new]).decrypt(rotated) == TOKEN


@pytest.mark.parametrize(
    "tampered", [lambda sealed: sealed[:-4] + "AAA=", lambda _: "gAAAAnonsense", lambda _: "\u00e9", lambda _: ""]
)
def test_what_no_key_opens_is_an_error_without_the_token(tampered) -> None:  # type: ignore[no-untyped-def]
    """The error is logged and kept with the job."""
    vault = Vault([Vault.new_key()])
    sealed = tampered(vault.encrypt(TOKEN))
    with pytest.raises(VaultError) as error:
        vault.decrypt(sealed)
    assert str(error.value) == "no key of the key file opens this token"


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

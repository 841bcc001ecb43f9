from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likelier.audit.privacy import find_private, glimpse, mask

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "Amazon": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub": "ghp_" + "a1B2" * 9,
    "OpenAI": "sk-" + "proj-" + "a1B2c3D4e5" * 4,
    "Anthropic": "sk-" + "ant-api03-" + "x9Y8" * 10,
    "Stripe": "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "Slack": "xox" + "b-123456789012-abcdefABCDEF",
    "Google": "AIza" + "Sy" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "Hugging Face": "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA " + "PRIVATE KEY-----",
}


@pytest.mark.parametrize("name", SECRETS)
def test_credentials_are_found_and_masked(name):
    text = f"Use {SECRETS[name]} for it."
    assert [found.kind for found in find_private(text)] == ["credential"]
    assert mask(text) == "Use [credential] for it."


def test_secrets_beside_text_without_spaces():
    assert [f.kind for f in find_private(f"我的密钥是{SECRETS['GitHub']}，请看")] == ["credential"]
    assert mask("请发邮件到zhang.san@qq.com吧") == "请发邮件到[mail address]吧"
    assert mask("use postgres://admin:s3cr3tPw@db.harbour.net:5432/x") == "use [password in an address]:5432/x"


@pytest.mark.parametrize(
    "kind, text",
    [
        ("mail address", "ann.lee+news@mail.harbour.co.uk"),
        ("phone number", "+49 30 901820"),
        ("phone number", "(415) 867-5309"),
        ("phone number", "415-867-5309"),
        ("card number", "4242 4242 4242 4242"),
        ("card number", "4242424242424242"),
        ("phone number", "+33 6 12 34 56 78"),
        ("account number", "DE89 3704 0044 0532 0130 00"),
        ("social security number", "078-05-1120"),
    ],
)
def test_personal_data_is_found(kind, text):
    assert [found.kind for found in find_private(f"It is {text}, I think.")] == [kind]
    assert mask(f"It is {text}, I think.") == f"It is [{kind}], I think."


@pytest.mark.parametrize(
    "text",
    [
        "support@harbor.example",  # reserved for examples, RFC 2606
        "order 4242 4242 4242 4241",  # fails Luhn's check
        "0000 0000 0000 0000",
        "DE89 3704 0044 0532 0130 01",
        "2024-05-17 and 2024-05-18",
        "version 1.2.3.4567, build 20240517",
        "3.14159265358979",
        "sk-learn is a nickname; sketch, task-oriented-dialogue",
        "page 123-456",
        "1,000,000,000 people",
        "call us at 555",
        "sk-learn-compatible-estimators-and-more",
        "class sk-fading-circle-container-box",
        "https://harbour.net:8080/a@b",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text):
    assert list(find_private(text)) == []
    assert mask(text) == text


@given(st.text())
def test_any_text_is_masked_once_and_for_all(text):
    found = list(find_private(text))
    assert all(before.stop <= after.start for before, after in pairwise(found))
    if not found:
        assert mask(text) == text


@given(st.text(min_size=1, max_size=60))
def test_a_glimpse_never_shows_more_than_a_third(text):
    shown = glimpse(text).partition("…")[0]
    assert len(shown) <= max(2, len(text) / 3)


def test_what_stands_around_a_number_does_not_hide_it():
    assert mask("My card is 4242424242424242.") == "My card is [card number]."
    assert mask("ES91 2100 0418 4502 0005 1332 FOR RENT") == "[account number] FOR RENT"
    key = "-----BEGIN RSA " + "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: DES-EDE3-CBC,00\n\nMIIE-pA==\n-----END RSA " + "PRIVATE KEY-----"
    assert mask(f"a {key} b") == "a [credential] b"

"""Tokens: who passes, who does not, and that no key of one kind is taken for another."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloudsync import tokens
from cloudsync.errors import ConfigurationError, KeysUnreachable, TokenRefused
from cloudsync.settings import Settings, load
from cloudsync.tokens import Principal, TokenVerifier, development_token

SECRET = "s" * 32


class KeySet:
    """A JWKS endpoint on loopback whose keys, and whose failures, a test decides."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.body: bytes | None = None
        self.status = 200
        self.fetches = 0
        keyset = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                keyset.fetches += 1
                body = json.dumps({"keys": keyset.keys}).encode() if keyset.body is None else keyset.body
                self.send_response(keyset.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"

    def publish(self, key: Any, key_id: str) -> None:
        algorithm = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
        self.keys.append(
            {**json.loads(algorithm.to_jwk(key.public_key())), "kid": key_id, "use": "sig"}  # type: ignore[no-untyped-call]
        )

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def keyset() -> Iterator[KeySet]:
    running = KeySet()
    yield running
    running.close()


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    found = {"sub": "ada", "tenant": "acme", "iss": "cloudsync", "aud": "cloudsync", "exp": now + 600}
    return {name: value for name, value in {**found, **changes}.items() if value is not ...}


def development(**overrides: Any) -> Settings:
    return load(mode="development", jwt_secret=SECRET, **overrides)


def signed(secret: str = SECRET, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm="HS256")


def test_development_token_is_verified() -> None:
    settings = development()
    before = int(time.time())
    principal = TokenVerifier(settings).verify(development_token(settings, tenant="acme", user="ada"))
    assert (principal.tenant, principal.user) == ("acme", "ada")
    assert before + 12 * 3600 <= principal.expires_at <= before + 12 * 3600 + 5
    assert not TokenVerifier(settings).blocking


def test_a_token_within_the_leeway_passes_and_beyond_it_does_not() -> None:
    verifier = TokenVerifier(development(jwt_leeway_s=30))
    assert verifier.verify(signed(exp=int(time.time()) - 10)).user == "ada"
    with pytest.raises(TokenRefused, match="expired"):
        verifier.verify(signed(exp=int(time.time()) - 60))


def test_a_token_from_an_issuer_whose_clock_is_ahead_passes() -> None:
    verifier = TokenVerifier(development())
    assert verifier.verify(signed(iat=int(time.time()) + 3600)).user == "ada"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": ...}, "`exp`"),
        ({"sub": ...}, "`sub`"),
        ({"tenant": ...}, "`tenant`"),
        ({"aud": ...}, "`aud`"),
        ({"iss": ...}, "`iss`"),
        ({"aud": "other"}, "another audience"),
        ({"iss": "other"}, "another issuer"),
        ({"nbf": 4_000_000_000}, "not valid here"),
        ({"exp": "soon"}, "not valid here"),
        ({"tenant": 7}, "1 to 200 characters"),
        ({"tenant": ""}, "1 to 200 characters"),
        ({"tenant": ["acme"]}, "1 to 200 characters"),
        ({"sub": "x" * 201}, "1 to 200 characters"),
        ({"sub": "a\x00b"}, "zero character"),
    ],
)
def test_claims_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TokenRefused, match=sentence):
        TokenVerifier(development()).verify(signed(**changes))


def _unsigned(header: dict[str, Any], payload: dict[str, Any]) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, payload)
    ]
    return ".".join((*parts, ""))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "nonsense",
        "a.b.c",
        "é.é.é",
        "\x00",
        ".." * 50,
        _unsigned({"alg": "none"}, claims()),
        _unsigned({"alg": "None", "typ": "JWT"}, claims()),
        _unsigned({}, claims()),
        signed("another secret of thirty-two byte"),
        jwt.encode(claims(), SECRET * 2, algorithm="HS512"),
        signed()[:-4],
    ],
)
def test_what_was_not_signed_with_the_secret_is_refused(token: str) -> None:
    with pytest.raises(TokenRefused):
        TokenVerifier(development()).verify(token)


def test_a_deeply_nested_header_is_refused_like_any_other(keyset: KeySet) -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"RS256","x":' + b"[" * 20_000).rstrip(b"=").decode()
    for verifier in (TokenVerifier(development()), TokenVerifier(load(jwks_url=keyset.url))):
        with pytest.raises(TokenRefused):
            verifier.verify(f"{header}.e30.AA")


def test_published_keys_verify_both_algorithms(
    keyset: KeySet, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    keyset.publish(rsa_key, "r1")
    keyset.publish(ec_key, "e1")
    verifier = TokenVerifier(load(jwks_url=keyset.url))
    assert verifier.blocking
    for key, algorithm, key_id in ((rsa_key, "RS256", "r1"), (ec_key, "ES256", "e1")):
        claimed = claims()
        token = jwt.encode(claimed, key, algorithm=algorithm, headers={"kid": key_id})
        assert verifier.verify(token) == Principal("acme", "ada", claimed["exp"])
    assert keyset.fetches == 1


def test_a_public_key_is_never_taken_for_a_secret(keyset: KeySet, rsa_key: rsa.RSAPrivateKey) -> None:
    keyset.publish(rsa_key, "r1")
    public = rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # The library refuses to sign with a public key, so the forgery is made by hand.
    forged = _hs256(public, {"alg": "HS256", "kid": "r1"}, claims())
    for settings in (load(jwks_url=keyset.url), development(jwks_url=keyset.url)):
        with pytest.raises(TokenRefused):
            TokenVerifier(settings).verify(forged)


def _hs256(secret: bytes, header: dict[str, Any], payload: dict[str, Any]) -> str:
    import hashlib
    import hmac

    body = _unsigned(header, payload).removesuffix(".")
    signature = hmac.digest(secret, body.encode(), hashlib.sha256)
    return f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    "forge", [lambda: signed(), lambda: _unsigned({"alg": "none", "kid": "r1"}, claims())]
)
def test_a_deployment_takes_no_shared_secret(
    keyset: KeySet, rsa_key: rsa.RSAPrivateKey, forge: Callable[[], str]
) -> None:
    keyset.publish(rsa_key, "r1")
    with pytest.raises(TokenRefused):
        TokenVerifier(load(jwks_url=keyset.url)).verify(forge())
    with pytest.raises(ConfigurationError):
        load(mode="deployment", jwt_secret=SECRET)


def test_an_unknown_or_a_missing_key_id_is_refused(keyset: KeySet, rsa_key: rsa.RSAPrivateKey) -> None:
    keyset.publish(rsa_key, "r1")
    verifier = TokenVerifier(load(jwks_url=keyset.url))
    for headers in ({"kid": "other"}, None):
        with pytest.raises(TokenRefused, match="not valid here"):
            verifier.verify(jwt.encode(claims(), rsa_key, algorithm="RS256", headers=headers))


def test_unknown_key_ids_do_not_make_the_platform_fetch_each_time(
    keyset: KeySet, rsa_key: rsa.RSAPrivateKey
) -> None:
    keyset.publish(rsa_key, "r1")
    verifier = TokenVerifier(load(jwks_url=keyset.url))
    for number in range(20):
        token = jwt.encode(claims(), rsa_key, algorithm="RS256", headers={"kid": f"k{number}"})
        with pytest.raises(TokenRefused):
            verifier.verify(token)
    assert keyset.fetches <= 2


def test_a_key_taken_out_of_the_set_stops_counting(
    keyset: KeySet, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    keyset.publish(rsa_key, "r1")
    verifier = TokenVerifier(load(jwks_url=keyset.url))
    token = jwt.encode(claims(), rsa_key, algorithm="RS256", headers={"kid": "r1"})
    verifier.verify(token)
    keyset.keys.clear()
    keyset.publish(ec_key, "e1")
    verifier._jwks.jwk_set_cache.lifespan = 0  # type: ignore[union-attr]  # as if five minutes had passed
    with pytest.raises(TokenRefused):
        verifier.verify(token)


@pytest.mark.parametrize(("status", "body"), [(500, b""), (200, b"<html>"), (302, b"")])
def test_keys_that_cannot_be_fetched_say_nothing_about_the_token(
    keyset: KeySet, rsa_key: rsa.RSAPrivateKey, status: int, body: bytes
) -> None:
    keyset.status, keyset.body = status, body
    verifier = TokenVerifier(load(jwks_url=keyset.url))
    token = jwt.encode(claims(), rsa_key, algorithm="RS256", headers={"kid": "r1"})
    with pytest.raises(KeysUnreachable) as refused:
        verifier.verify(token)
    assert refused.value.code == "unavailable"
    keyset.status, keyset.body = 200, None
    keyset.publish(rsa_key, "r1")
    assert verifier.verify(token).user == "ada"


def test_keys_that_were_fetched_survive_an_outage_of_their_server_for_an_hour(
    keyset: KeySet, rsa_key: rsa.RSAPrivateKey
) -> None:
    keyset.publish(rsa_key, "r1")
    verifier = TokenVerifier(load(jwks_url=keyset.url))
    source: Any = verifier._jwks
    token = jwt.encode(claims(), rsa_key, algorithm="RS256", headers={"kid": "r1"})
    unknown = jwt.encode(claims(), rsa_key, algorithm="RS256", headers={"kid": "new"})
    verifier.verify(token)
    source.jwk_set_cache.lifespan = 0  # as if five minutes had passed
    source._last_successful_fetch = None
    keyset.status, fetches = 500, keyset.fetches
    for _ in range(5):
        assert verifier.verify(token).user == "ada"
    assert keyset.fetches == fetches + 1  # it is not asked again for every token
    with pytest.raises(KeysUnreachable):
        verifier.verify(unknown)  # nobody can say whether its key was published meanwhile
    source._kept_since_s -= tokens.KEYS_KEPT_S
    with pytest.raises(KeysUnreachable):
        verifier.verify(token)
    keyset.status = 200
    assert verifier.verify(token).user == "ada"


def test_a_set_without_keys_is_an_answer_and_ends_all(keyset: KeySet, rsa_key: rsa.RSAPrivateKey) -> None:
    keyset.publish(rsa_key, "r1")
    verifier = TokenVerifier(load(jwks_url=keyset.url))
    token = jwt.encode(claims(), rsa_key, algorithm="RS256", headers={"kid": "r1"})
    verifier.verify(token)
    keyset.keys.clear()
    verifier._jwks.jwk_set_cache.lifespan = 0  # type: ignore[union-attr]  # as if five minutes had passed
    with pytest.raises(TokenRefused) as refused:
        verifier.verify(token)
    assert not isinstance(refused.value, KeysUnreachable)


def test_keys_of_a_server_that_is_gone_say_nothing_about_the_token(rsa_key: rsa.RSAPrivateKey) -> None:
    gone = KeySet()
    gone.close()
    token = jwt.encode(claims(), rsa_key, algorithm="RS256", headers={"kid": "r1"})
    with pytest.raises(KeysUnreachable):
        TokenVerifier(load(jwks_url=gone.url)).verify(token)


def test_development_tokens_are_for_development() -> None:
    with pytest.raises(TokenRefused, match="development mode only"):
        development_token(load(jwks_url="https://keys.example"), tenant="acme", user="ada")
    with pytest.raises(ConfigurationError, match="CLOUDSYNC_JWKS_URL"):
        TokenVerifier(load())

"""Holds the stand-in to Microsoft's own clients: azure-keyvault-keys and azure-identity run against it. Every operation
succeeds, and every refusal raises the class, with the code, that the vendor documents. Run with $BYOK_TEST_PYTHON; needs
`node` on the path. Prints how many checks held, and ends with 0 if all did."""

import datetime
import ipaddress
import json
import logging
import os
import pathlib
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

import jwt
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.identity import ClientSecretCredential, CredentialUnavailableError, ManagedIdentityCredential, WorkloadIdentityCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

HERE = pathlib.Path(__file__).parent
WRAP = ["Microsoft.KeyVault/vaults/keys/wrap/action", "Microsoft.KeyVault/vaults/keys/unwrap/action"]
HSM_WRAP = ["Microsoft.KeyVault/managedHsm/keys/wrap/action", "Microsoft.KeyVault/managedHsm/keys/unwrap/action"]
PEM = serialization.Encoding.PEM
DEK = bytes(range(32))
checks = 0


def check(holds, what):
    global checks
    checks += 1
    if not holds:
        raise SystemExit(f"does not hold: {what}")


def raises(kind, code, call, status=None):
    """`call` raises exactly this class, with this `error.code` (and inner code, after a slash)."""
    try:
        call()
    except kind as error:
        check(type(error) is kind, f"{type(error).__name__} is {kind.__name__}: {error}")
        if status is not None:
            check(error.status_code == status, f"{error.status_code} is {status}")
        if code is not None:
            found = error.error.code if getattr(error, "error", None) else None
            inner = (error.error.innererror or {}).get("code") if found else None
            check(code == (f"{found}/{inner}" if inner else found), f"{found}/{inner} is {code}")
        return error
    raise SystemExit(f"does not hold: {kind.__name__} is raised")


def certificates(folder):
    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    start, end = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1), datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def build(subject, public, extension, ca):
        made = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("authority")).public_key(public)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
        made = made.add_extension(x509.BasicConstraints(ca, None), True).add_extension(*extension)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
        return made.sign(ca_key, hashes.SHA256()).public_bytes(PEM)

    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    files = {n: folder / n for n in ("ca.pem", "server.pem", "server.key")}
    files["ca.pem"].write_bytes(build("authority", ca_key.public_key(), (usage, True), True))
    files["server.pem"].write_bytes(build("server", key.public_key(), (names, False), False))
    files["server.key"].write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files


class Customer:
    def __init__(self, addresses, ca):
        self.at, self.ca = addresses, str(ca)
        self.context = ssl.create_default_context(cafile=self.ca)

    def control(self, method, path, body=None, target="vault"):
        request = urllib.request.Request(f"{self.at[target]}/control/{path}", json.dumps(body or {}).encode(), {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, context=self.context) as response:
            return json.loads(response.read() or b"{}")

    def principal(self, **given):
        return self.control("POST", "principals", given)

    def allow(self, principal, actions, scope="/", target="vault"):
        self.control("POST", "roles", {"oid": principal["oid"], "scope": scope, "actions": actions}, target)

    def secret(self, principal, value="s3cret", tenant=None):
        return ClientSecretCredential(tenant or self.at["tenant"], principal["clientId"], value, authority=self.at["authority"], disable_instance_discovery=True, connection_verify=self.ca, retry_total=0)

    def client(self, credential, target="vault"):
        return KeyClient(self.at[target], credential, connection_verify=self.ca, verify_challenge_resource=False, retry_total=0)

    def crypto(self, credential, key, target="vault"):
        """By the key's URL and without the right to read it: nothing can be done locally."""
        url = key if key.startswith("https:") else f"{self.at[target]}/keys/{key}"
        return CryptographyClient(url, credential, connection_verify=self.ca, verify_challenge_resource=False, retry_total=0)

    def counted(self, what, target="vault"):
        return self.control("GET", "counters").get(target, {}).get(what, 0)

    def fault(self, **fault):
        self.control("POST", "faults", fault)


def wrap_with_id(crypto, algorithm):
    """The wrapped DEK and the key id of the answer, which the client itself leaves out of its result."""
    seen = []
    result = crypto.wrap_key(algorithm, DEK, raw_response_hook=lambda answer: seen.append(answer.http_response.json()))
    return seen[-1]["kid"], result.encrypted_key


def lifecycle(us):
    owner = us.principal(secrets=[{"value": "s3cret"}])
    us.allow(owner, ["*"])
    client = us.client(us.secret(owner))
    made = client.create_rsa_key("byok", size=2048)
    check(made.id.startswith(f"{us.at['vault']}/keys/byok/") and len(made.properties.version) == 32, "a key has a version")
    second = client.rotate_key("byok")
    check(second.properties.version != made.properties.version, "a rotated key has another version")
    check(client.get_key("byok").id == second.id, "the newest version is the current one")
    check(client.get_key("byok", made.properties.version).id == made.id, "an older version is there")
    check(len(list(client.list_properties_of_key_versions("byok"))) == 2, "both are listed")
    check([one.name for one in client.list_properties_of_keys()] == ["byok"], "the key is listed")
    check(client.update_key_properties("byok", made.properties.version, enabled=False).properties.enabled is False, "a version is disabled")
    raises(ResourceNotFoundError, "KeyNotFound", lambda: client.get_key("nothing"), 404)
    raises(ResourceNotFoundError, "KeyNotFound", lambda: client.get_key("byok", "0" * 32), 404)
    client.begin_delete_key("byok").wait()
    raises(ResourceNotFoundError, "KeyNotFound", lambda: client.get_key("byok"), 404)
    check(client.get_deleted_key("byok").recovery_id.endswith("/deletedkeys/byok"), "a deleted key can be seen")
    raises(ResourceExistsError, "Conflict/ObjectIsDeletedButRecoverable", lambda: client.create_rsa_key("byok"), 409)
    client.begin_recover_deleted_key("byok").wait()
    check(client.get_key("byok").id == second.id, "a recovered key is as it was")
    client.begin_delete_key("byok").wait()
    client.purge_deleted_key("byok")
    raises(ResourceNotFoundError, "KeyNotFound", lambda: client.get_deleted_key("byok"), 404)


def wrap_and_unwrap(us, ours):
    crypto = us.crypto(us.secret(ours), "byok")
    for algorithm in (KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.rsa_oaep):
        before = us.counted("wrapKey"), us.counted("unwrapKey")
        kid, wrapped = wrap_with_id(crypto, algorithm)
        version = us.control("GET", "keys/byok")["versions"][-1]
        check(kid == f"{us.at['vault']}/keys/byok/{version}", "the answer's key id names the version")
        check(len(wrapped) == 256 and DEK not in wrapped, "it is wrapped")
        check(us.crypto(us.secret(ours), kid).unwrap_key(algorithm, wrapped).key == DEK, "it unwraps")
        check((us.counted("wrapKey"), us.counted("unwrapKey")) == (before[0] + 1, before[1] + 1), "at the server")
    check(us.counted("challenge") > 0, "the client asked for a challenge first")
    oaep = KeyWrapAlgorithm.rsa_oaep_256
    old, wrapped = wrap_with_id(crypto, oaep)
    us.control("POST", "keys/byok")
    check(wrap_with_id(crypto, oaep)[0] != old, "a new version wraps")
    check(us.crypto(us.secret(ours), old).unwrap_key(oaep, wrapped).key == DEK, "the old one unwraps")
    altered = bytes([wrapped[0] ^ 1]) + wrapped[1:]
    raises(HttpResponseError, "BadParameter", lambda: us.crypto(us.secret(ours), old).unwrap_key(oaep, altered), 400)
    raises(HttpResponseError, "BadParameter", lambda: us.crypto(us.secret(ours), old).unwrap_key(oaep, b"short"), 400)
    raises(HttpResponseError, "BadParameter", lambda: crypto.unwrap_key(oaep, wrapped), 400)
    raises(HttpResponseError, "BadParameter", lambda: crypto.wrap_key(KeyWrapAlgorithm.aes_256, DEK), 400)


def states(us, ours):
    oaep, old = KeyWrapAlgorithm.rsa_oaep_256, us.control("GET", "keys/byok")["versions"][0]
    crypto = us.crypto(us.secret(ours), f"byok/{old}")
    wrapped = crypto.wrap_key(oaep, DEK).encrypted_key
    attributes = lambda **given: us.control("POST", "keys/byok/attributes", {"version": old, "attributes": given})
    attributes(enabled=False)
    for call in (lambda: crypto.wrap_key(oaep, DEK), lambda: crypto.unwrap_key(oaep, wrapped)):
        raises(HttpResponseError, "Forbidden/KeyDisabled", call, 403)
    check(wrap_with_id(us.crypto(us.secret(ours), "byok"), oaep)[0].split("/")[-1] != old, "another version is not concerned")
    us.control("POST", "vault", {"disabledWraps": True})
    check(crypto.wrap_key(oaep, DEK).encrypted_key != DEK, "as issue 45342 saw it: the public half goes on")
    raises(HttpResponseError, "Forbidden/KeyDisabled", lambda: crypto.unwrap_key(oaep, wrapped), 403)
    us.control("POST", "vault", {"disabledWraps": False})
    for window in ({"exp": int(time.time()) - 60}, {"nbf": int(time.time()) + 3600}):
        attributes(enabled=True, **({"nbf": 0, "exp": 4102444800} | window))
        raises(HttpResponseError, "Forbidden", lambda: crypto.wrap_key(oaep, DEK), 403)
        check(crypto.unwrap_key(oaep, wrapped).key == DEK, "outside nbf and exp a key still unwraps")
    attributes(nbf=0, exp=4102444800)
    us.control("POST", "keys/byok/attributes", {"version": old, "key_ops": ["wrapKey"]})
    raises(HttpResponseError, "Forbidden/KeyOperationForbidden", lambda: crypto.unwrap_key(oaep, wrapped), 403)
    us.control("POST", "keys/byok/attributes", {"version": old, "key_ops": ["wrapKey", "unwrapKey"]})
    check(crypto.unwrap_key(oaep, wrapped).key == DEK, "all is well again")


def permissions(us, ours):
    oaep = KeyWrapAlgorithm.rsa_oaep_256
    crypto = us.crypto(us.secret(ours), "byok")
    us.control("POST", "keys/other")
    raises(HttpResponseError, "Forbidden/ForbiddenByRbac", lambda: us.crypto(us.secret(ours), "other").wrap_key(oaep, DEK), 403)
    raises(HttpResponseError, "Forbidden/ForbiddenByRbac", lambda: us.client(us.secret(ours)).get_key("byok"), 403)
    us.control("DELETE", f"roles/{ours['oid']}")
    raises(HttpResponseError, "Forbidden/ForbiddenByRbac", lambda: crypto.wrap_key(oaep, DEK), 403)
    us.control("POST", "vault", {"mode": "policy"})
    raises(HttpResponseError, "Forbidden/AccessDenied", lambda: crypto.wrap_key(oaep, DEK), 403)
    us.control("POST", "policies", {"oid": ours["oid"], "permissions": ["wrapKey", "unwrapKey"]})
    check(crypto.wrap_key(oaep, DEK).encrypted_key != DEK, "an access policy lets us")
    us.control("POST", "vault", {"mode": "rbac"})
    us.allow(ours, WRAP, "/keys/byok")
    for closed in ("ForbiddenByFirewall", "ForbiddenByConnection"):
        us.control("POST", "vault", {"closedBy": closed})
        raises(HttpResponseError, f"Forbidden/{closed}", lambda: crypto.wrap_key(oaep, DEK), 403)
    us.control("POST", "vault", {"closedBy": None})
    us.fault(target="vault", operation="wrapKey", status=429, headers={"Retry-After": "1"}, body={"error": {"code": "Throttled", "message": "Request was not processed because too many requests were received."}})
    error = raises(HttpResponseError, "Throttled", lambda: crypto.wrap_key(oaep, DEK), 429)
    check(error.response.headers["Retry-After"] == "1", "it says for how long")


def credentials(us, ours):
    oaep = KeyWrapAlgorithm.rsa_oaep_256
    wrap = lambda credential: us.crypto(credential, "byok").wrap_key(oaep, DEK)
    refused = lambda call, aadsts: check(f"AADSTS{aadsts}" in str(raises(ClientAuthenticationError, None, call)), f"AADSTS{aadsts} is named")
    refused(lambda: wrap(us.secret(ours, "wrong")), 7000215)
    refused(lambda: wrap(us.secret({"clientId": "00000000-0000-0000-0000-000000000000"})), 700016)
    expired = us.principal(secrets=[{"value": "s3cret", "expires": 1}])
    refused(lambda: wrap(us.secret(expired)), 7000222)
    for change, aadsts in (("disabled", 7000112), ("blocked", 53003)):
        us.control("PATCH", f"principals/{ours['clientId']}", {change: True})
        refused(lambda: wrap(us.secret(ours)), aadsts)
        us.control("PATCH", f"principals/{ours['clientId']}", {change: False})
    elsewhere = us.secret(ours, tenant="11111111-1111-1111-1111-111111111111")
    error = raises(ClientAuthenticationError, None, lambda: elsewhere.get_token("https://vault.azure.net/.default"))
    check("11111111" in str(error), "an unknown tenant has no metadata")
    # A token that holds no more: the vault challenges again, and a new one is taken.
    credential = us.secret(ours)
    crypto = us.crypto(credential, "byok")
    crypto.wrap_key(oaep, DEK)
    us.control("DELETE", "tokens")
    raises(ClientAuthenticationError, "Unauthorized", lambda: crypto.wrap_key(oaep, DEK), 401)
    check(wrap(us.secret(ours)).encrypted_key != DEK, "a new token is taken")
    hsm_token = credential.get_token("https://managedhsm.azure.net/.default").token
    request = urllib.request.Request(f"{us.at['vault']}/keys/byok/wrapkey?api-version=7.5", b"{}", {"Authorization": f"Bearer {hsm_token}"}, method="POST")
    try:
        urllib.request.urlopen(request, context=us.context)
        check(False, "a token for another audience is refused")
    except urllib.error.HTTPError as error:
        check(error.code == 401 and "vault.azure.net" in error.headers["WWW-Authenticate"], "a token for another audience is refused")


def identities(us, folder):
    oaep = KeyWrapAlgorithm.rsa_oaep_256
    issuer_key = rsa.generate_private_key(65537, 2048)
    public = issuer_key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    workload = us.principal(federated=[{"issuer": "https://oidc.example", "subject": "system:serviceaccount:byok:byok", "key": public}])
    us.allow(workload, WRAP, "/keys/byok")

    def assertion(key=issuer_key, **changes):
        claims = {"iss": "https://oidc.example", "sub": "system:serviceaccount:byok:byok", "aud": "api://AzureADTokenExchange", "exp": int(time.time()) + 3600}
        path = folder / "token"
        path.write_text(jwt.encode(claims | changes, key, "RS256"))
        return WorkloadIdentityCredential(tenant_id=us.at["tenant"], client_id=workload["clientId"], token_file_path=str(path), authority=us.at["authority"], disable_instance_discovery=True, connection_verify=us.ca, retry_total=0)

    check(us.crypto(assertion(), "byok").wrap_key(oaep, DEK).encrypted_key != DEK, "a workload identity wraps")
    foreign = rsa.generate_private_key(65537, 2048)
    for bad, aadsts in (({"sub": "other"}, 700213), ({"iss": "https://other"}, 700211), ({"aud": "other"}, 700212), ({"exp": 1}, 700024), ({"key": foreign}, 700027)):
        error = raises(ClientAuthenticationError, None, lambda: us.crypto(assertion(**bad), "byok").wrap_key(oaep, DEK))
        check(f"AADSTS{aadsts}" in str(error), f"AADSTS{aadsts} is named")

    os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = us.at["imds"]
    system, user = us.principal(managed=True, systemAssigned=True), us.principal(managed=True)
    for one, credential in ((system, ManagedIdentityCredential(retry_total=0)), (user, ManagedIdentityCredential(client_id=user["clientId"], retry_total=0))):
        us.allow(one, WRAP, "/keys/byok")
        check(us.crypto(credential, "byok").wrap_key(oaep, DEK).encrypted_key != DEK, "a managed identity wraps")
    check(us.counted("token", "imds") >= 2, "by IMDS")
    os.environ.update(IDENTITY_ENDPOINT=f"{us.at['imds']}/msi/token", IDENTITY_HEADER="canary-identity-header")
    check(us.crypto(ManagedIdentityCredential(retry_total=0), "byok").wrap_key(oaep, DEK).encrypted_key != DEK, "an app's identity wraps")
    del os.environ["IDENTITY_ENDPOINT"], os.environ["IDENTITY_HEADER"]
    nobody = ManagedIdentityCredential(client_id="00000000-0000-0000-0000-000000000000", retry_total=0)
    raises(CredentialUnavailableError, None, lambda: us.crypto(nobody, "byok").wrap_key(oaep, DEK))


def managed_hsm(us, ours):
    us.control("POST", "keys/aes", {"kty": "oct-HSM", "key_size": 256, "key_ops": ["wrapKey", "unwrapKey"]}, "hsm")
    us.control("POST", "keys/rsa", {"kty": "RSA-HSM"}, "hsm")
    raises(HttpResponseError, "Forbidden/ForbiddenByRbac", lambda: us.crypto(us.secret(ours), "aes", "hsm").wrap_key(KeyWrapAlgorithm.aes_256, DEK), 403)
    us.allow(ours, HSM_WRAP, "/keys/aes", "hsm")
    us.allow(ours, HSM_WRAP, "/keys/rsa", "hsm")
    for key, algorithm, length in (("aes", KeyWrapAlgorithm.aes_256, 40), ("rsa", KeyWrapAlgorithm.rsa_oaep_256, 256)):
        crypto = us.crypto(us.secret(ours), key, "hsm")
        kid, wrapped = wrap_with_id(crypto, algorithm)
        check(len(wrapped) == length and kid.startswith(f"{us.at['hsm']}/keys/{key}/"), "it is wrapped in the HSM")
        check(crypto.unwrap_key(algorithm, wrapped).key == DEK, "it unwraps")
        altered = bytes([wrapped[0] ^ 1]) + wrapped[1:]
        raises(HttpResponseError, "BadParameter", lambda: crypto.unwrap_key(algorithm, altered), 400)


def main():
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        files = certificates(folder)
        command = ["node", str(HERE / "key_vault.mjs"), "--cert", str(files["server.pem"]), "--key", str(files["server.key"])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            try:
                first = Customer(json.loads(server.stdout.readline()), files["ca.pem"])
                lifecycle(first)
                us = Customer(first.control("POST", "worlds"), files["ca.pem"])
                us.control("POST", "keys/byok")
                ours = us.principal(secrets=[{"value": "s3cret"}])
                us.allow(ours, WRAP, "/keys/byok")
                wrap_and_unwrap(us, ours)
                states(us, ours)
                permissions(us, ours)
                credentials(us, ours)
                identities(us, folder)
                managed_hsm(us, ours)
            finally:
                server.kill()
    print(f"azure: {checks} checks held")


if __name__ == "__main__":
    sys.exit(main())

"""Holds the stand-in to Google's own client: `google-cloud-kms` over REST, with credentials of `google-auth`.

    $BYOK_TEST_PYTHON tests/servers/gcp/vendor_check.py

Starts the stand-in, does every operation, provokes every refusal and expects the exception class that Google documents for
it. The transport takes `url_scheme="http"`, a parameter of its own for local servers: nothing of the client is patched.
Prints the count of checks; exits with 1 at the first that fails.
"""

import base64
import json
import os
import pathlib
import subprocess
import urllib.error
import urllib.request

server = subprocess.Popen(
    ["node", str(pathlib.Path(__file__).with_name("kms.mjs"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
address = server.stdout.readline().strip()
host = address.removeprefix("http://")
# Google's library reads it when it is imported.
os.environ["GCE_METADATA_HOST"] = host

import google.auth.transport.requests
import grpc
from google.api_core import exceptions
from google.auth import compute_engine, exceptions as auth_exceptions, impersonated_credentials
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceRestTransport
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.oauth2 import credentials as user_credentials, service_account

CLOUD = "https://www.googleapis.com/auth/cloud-platform"
RING = "projects/p/locations/global/keyRings/r"
KEY = f"{RING}/cryptoKeys/k"
ROLE = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
checks = 0


def check(holds, what):
    global checks
    checks += 1
    if not holds:
        raise SystemExit(f"FAILED: {what}")


def raises(kind, act, what, reason=None, text=None):
    try:
        act()
    except kind as error:
        check(type(error) is kind, f"{what}: {type(error)} instead of {kind}")
        if reason:
            check(error.reason == reason, f"{what}: reason {error.reason}")
        if text:
            check(text in str(error), f"{what}: {error}")
        return error
    except Exception as error:  # noqa: BLE001
        raise SystemExit(f"FAILED: {what}: {type(error)}: {error}") from error
    raise SystemExit(f"FAILED: {what}: nothing was raised")


def refused(kind, act, what, reason=None, text=None):
    """A refusal by the service. Over REST the client picks the class by HTTP status, over gRPC by Google's status, which is
    what the documentation names: `kind` is that one, and the class that was raised is it or what it derives from."""
    over_rest = exceptions.from_http_status(kind.code, "").__class__
    error = raises(over_rest, act, what, reason, text)
    check(issubclass(kind, over_rest), f"{what}: {kind} is no {over_rest}")
    status = error.response.json()["error"]["status"]
    check(grpc.StatusCode[status] == kind.grpc_status_code, f"{what}: status {status}")
    return error


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def control(what, **body):
    request = urllib.request.Request(f"{address}/control/{what}", json.dumps(body).encode(), method="POST")
    return json.load(urllib.request.urlopen(request))


pair = control("keypair")


def account(email):
    return {**control("account", email=email, public_key=pair["public_key"]), "private_key": pair["private_key"]}


def by_file(info, scopes=(CLOUD,)):
    return service_account.Credentials.from_service_account_info(info, scopes=scopes)


def client(credentials):
    transport = KeyManagementServiceRestTransport(host=host, credentials=credentials, url_scheme="http")
    return kms_v1.KeyManagementServiceClient(transport=transport)


def call(method, **request):
    """Once: the client itself would try again."""
    return method(request=request, retry=None, timeout=10)


try:
    check(crc32c(b"123456789") == 0xE3069283, "our own CRC32C")
    admin_file, us_file = account("admin@p.iam.gserviceaccount.com"), account("byok@p.iam.gserviceaccount.com")
    control("v1/projects/p:setIamPolicy", policy={"bindings": [
        {"role": "roles/cloudkms.admin", "members": ["serviceAccount:admin@p.iam.gserviceaccount.com"]}]})
    admin, us = client(by_file(admin_file)), client(by_file(us_file))

    # What the customer does.
    ring = call(admin.create_key_ring, parent="projects/p/locations/global", key_ring_id="r", key_ring={})
    check(ring.name == RING, "create_key_ring")
    purpose = kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
    made = call(admin.create_crypto_key, parent=RING, crypto_key_id="k", crypto_key={"purpose": purpose})
    check(made.name == KEY and made.primary.name == f"{KEY}/cryptoKeyVersions/1", "create_crypto_key")
    refused(exceptions.AlreadyExists, lambda: call(admin.create_crypto_key, parent=RING, crypto_key_id="k", crypto_key={"purpose": purpose}), "a second one")
    member = "serviceAccount:byok@p.iam.gserviceaccount.com"
    binding = policy_pb2.Policy(bindings=[policy_pb2.Binding(role=ROLE, members=[member])])
    admin.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=KEY, policy=binding))
    read = admin.get_iam_policy(request=iam_policy_pb2.GetIamPolicyRequest(resource=KEY))
    check(read.bindings[0].role == ROLE and list(read.bindings[0].members) == [member], "get_iam_policy")
    asked = ["cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.destroy"]
    held = us.test_iam_permissions(request=iam_policy_pb2.TestIamPermissionsRequest(resource=KEY, permissions=asked))
    check(list(held.permissions) == asked[:1], "test_iam_permissions")

    # Encrypt and decrypt.
    plain, aad = b"thirty-two bytes of a data key.." , b"tenant and DEK id"

    def encrypt(name=KEY, **more):
        return call(us.encrypt, **{"name": name, "plaintext": plain, "additional_authenticated_data": aad, "plaintext_crc32c": crc32c(plain),
                                   "additional_authenticated_data_crc32c": crc32c(aad), **more})

    def decrypt(ciphertext, **more):
        return call(us.decrypt, **{"name": KEY, "ciphertext": ciphertext, "additional_authenticated_data": aad, "ciphertext_crc32c": crc32c(ciphertext),
                                   "additional_authenticated_data_crc32c": crc32c(aad), **more})

    sealed = encrypt()
    check(sealed.name == f"{KEY}/cryptoKeyVersions/1", "the version that was used")
    check(sealed.verified_plaintext_crc32c and sealed.verified_additional_authenticated_data_crc32c, "verified")
    check(sealed.ciphertext_crc32c == crc32c(sealed.ciphertext), "the ciphertext's checksum")
    check(sealed.protection_level == kms_v1.ProtectionLevel.SOFTWARE, "protection_level")
    check(base64.b64encode(sealed.ciphertext).startswith(b"Ci"), "the ciphertext begins as Google's do")
    check(plain not in sealed.ciphertext and encrypt().ciphertext != sealed.ciphertext, "it is a ciphertext")
    bare = call(us.encrypt, name=KEY, plaintext=plain)
    check(not bare.verified_plaintext_crc32c, "what came without a checksum was not verified")
    check(call(us.decrypt, name=KEY, ciphertext=bare.ciphertext).plaintext == plain, "decrypt without AAD")
    opened = decrypt(sealed.ciphertext)
    check(opened.plaintext == plain and opened.plaintext_crc32c == crc32c(plain) and opened.used_primary, "decrypt")
    second = call(admin.create_crypto_key_version, parent=KEY, crypto_key_version={})
    check(second.name == f"{KEY}/cryptoKeyVersions/2", "create_crypto_key_version")
    check(encrypt().name.endswith("/1"), "a new version is not the primary one by itself")
    call(admin.update_crypto_key_primary_version, name=KEY, crypto_key_version_id="2")
    check(encrypt().name.endswith("/2") and not decrypt(sealed.ciphertext).used_primary, "the primary version")
    check(encrypt(f"{KEY}/cryptoKeyVersions/1").name.endswith("/1"), "encrypt on a version")
    check(len(list(admin.list_crypto_key_versions(parent=KEY))) == 2, "list_crypto_key_versions")
    check(call(admin.get_crypto_key, name=KEY).primary.name.endswith("/2"), "get_crypto_key")

    # Refusals of an argument.
    invalid = exceptions.InvalidArgument
    refused(invalid, lambda: decrypt(sealed.ciphertext, additional_authenticated_data=b"", additional_authenticated_data_crc32c=0), "other AAD")
    refused(invalid, lambda: decrypt(b"\n$\0" + bytes(90)), "a foreign ciphertext")
    torn = sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1])
    refused(invalid, lambda: decrypt(torn), "an altered ciphertext")
    refused(invalid, lambda: encrypt(plaintext_crc32c=1), "a wrong checksum of the plaintext", text="checksum")
    refused(invalid, lambda: encrypt(additional_authenticated_data_crc32c=1), "a wrong checksum of the AAD")
    refused(invalid, lambda: decrypt(sealed.ciphertext, ciphertext_crc32c=1), "a wrong checksum of the ciphertext")
    refused(invalid, lambda: encrypt(plaintext=bytes(65537), plaintext_crc32c=crc32c(bytes(65537))), "a plaintext above 64 KiB")
    hsm = {"purpose": purpose, "version_template": {"protection_level": kms_v1.ProtectionLevel.HSM, "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION"}}
    call(admin.create_crypto_key, parent=RING, crypto_key_id="hsm", crypto_key=hsm)
    admin.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=f"{RING}/cryptoKeys/hsm", policy=binding))
    check(call(us.encrypt, name=f"{RING}/cryptoKeys/hsm", plaintext=bytes(8000)).protection_level == kms_v1.ProtectionLevel.HSM, "an HSM key")
    refused(invalid, lambda: call(us.encrypt, name=f"{RING}/cryptoKeys/hsm", plaintext=bytes(8193)), "8 KiB and a byte to an HSM key")
    raises(ValueError, lambda: call(us.decrypt, name=f"{KEY}/cryptoKeyVersions/1", ciphertext=b"x"), "decrypt on a version, in the client")
    token = control("token", email="byok@p.iam.gserviceaccount.com")["access_token"]
    request = urllib.request.Request(f"{address}/v1/{KEY}/cryptoKeyVersions/1:decrypt", b"{}", {"Authorization": f"Bearer {token}"}, method="POST")
    page = raises(urllib.error.HTTPError, lambda: urllib.request.urlopen(request), "decrypt on a version, at the server")
    check(page.code == 404 and page.headers["Content-Type"].startswith("text/html"), "which has no such method")

    # Versions that do not serve.
    states = kms_v1.CryptoKeyVersion.CryptoKeyVersionState
    one = f"{KEY}/cryptoKeyVersions/1"

    def refused_by_state(kind):
        for act in (lambda: decrypt(sealed.ciphertext), lambda: encrypt(one)):
            error = refused(exceptions.FailedPrecondition, act, kind)
            violation = error.details[0]["violations"][0]
            check(violation["type"] == kind and violation["subject"] == one, f"{kind}: the violation")

    call(admin.update_crypto_key_version, crypto_key_version={"name": one, "state": states.DISABLED}, update_mask={"paths": ["state"]})
    refused_by_state("KEY_DISABLED")
    check(encrypt().name.endswith("/2"), "the other version serves")
    call(admin.update_crypto_key_version, crypto_key_version={"name": one, "state": states.ENABLED}, update_mask={"paths": ["state"]})
    check(decrypt(sealed.ciphertext).plaintext == plain, "enabled again")
    check(call(admin.destroy_crypto_key_version, name=one).state == states.DESTROY_SCHEDULED, "destroy")
    refused_by_state("KEY_DESTROY_SCHEDULED")
    check(call(admin.restore_crypto_key_version, name=one).state == states.DISABLED, "restore gives a disabled one")
    urllib.request.urlopen(urllib.request.Request(f"{address}/control/v1/{one}", b'{"state":"DESTROYED"}', method="PATCH"))
    refused_by_state("KEY_DESTROYED")
    refused(exceptions.FailedPrecondition, lambda: call(admin.restore_crypto_key_version, name=one), "a destroyed one stays so")

    # Rights.
    denied = exceptions.PermissionDenied
    refused(denied, lambda: call(us.encrypt, name=f"{RING}/cryptoKeys/none", plaintext=plain), "no right, no key", "IAM_PERMISSION_DENIED")
    refused(denied, lambda: call(us.get_crypto_key, name=KEY), "the role does not read", "IAM_PERMISSION_DENIED")
    refused(exceptions.NotFound, lambda: call(admin.get_crypto_key, name=f"{RING}/cryptoKeys/none"), "whoever may know learns it")
    for role, may in (("cryptoKeyEncrypter", encrypt), ("cryptoKeyDecrypter", lambda: decrypt(fresh))):
        fresh = encrypt().ciphertext
        only = policy_pb2.Policy(bindings=[policy_pb2.Binding(role=f"roles/cloudkms.{role}", members=[member])])
        admin.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=KEY, policy=only))
        check(may(), f"{role} may")
        other = (lambda: decrypt(fresh)) if role == "cryptoKeyEncrypter" else encrypt
        refused(denied, other, f"{role} may no more", "IAM_PERMISSION_DENIED", "useTo")
        admin.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=KEY, policy=binding))

    # Tokens.
    gone = auth_exceptions.RefreshError
    raises(gone, lambda: call(client(by_file(account("byok@p.iam.gserviceaccount.com") | {"private_key": control("keypair")["private_key"]})).encrypt, name=KEY, plaintext=plain),
           "another private key", text="invalid_grant: Invalid JWT Signature.")
    raises(gone, lambda: call(client(by_file({**us_file, "client_email": "who@p.iam.gserviceaccount.com"})).encrypt, name=KEY, plaintext=plain), "no such account", text="invalid_grant")
    raises(gone, lambda: call(client(by_file(us_file, ("https://example.com/scope",))).encrypt, name=KEY, plaintext=plain), "no such scope", text="invalid_scope")
    iam_only = client(by_file(us_file, ("https://www.googleapis.com/auth/iam",)))
    refused(denied, lambda: call(iam_only.encrypt, name=KEY, plaintext=plain), "a scope for something else", "ACCESS_TOKEN_SCOPE_INSUFFICIENT")
    held = client(user_credentials.Credentials("ya29.never-was"))
    # google-auth answers a 401 by a refresh, and has nothing to refresh with.
    raises(gone, lambda: call(held.encrypt, name=KEY, plaintext=plain), "a token that never was")
    for what, change in (("revoked", lambda: control("revoke")), ("disabled", lambda: control("account", email="byok@p.iam.gserviceaccount.com", disabled=True))):
        stale = control("token", email="byok@p.iam.gserviceaccount.com")["access_token"]
        change()
        request = urllib.request.Request(f"{address}/v1/{KEY}:encrypt", b"{}", {"Authorization": f"Bearer {stale}"}, method="POST")
        answer = raises(urllib.error.HTTPError, lambda: urllib.request.urlopen(request), f"a {what} token")
        check(answer.code == 401 and json.load(answer)["error"]["status"] == "UNAUTHENTICATED", f"a {what} token: 401")
    raises(gone, encrypt, "a disabled account", text="invalid_grant")
    control("account", email="byok@p.iam.gserviceaccount.com", disabled=False)
    check(encrypt(), "enabled again")

    # A user's refresh token, impersonation, the metadata server.
    control("user", email="ada@example.com", refresh_token="1//r", client_id="c", client_secret="s")
    ada = policy_pb2.Policy(bindings=[policy_pb2.Binding(role=ROLE, members=[member, "user:ada@example.com"])])
    admin.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=KEY, policy=ada))

    def user(secret="s", refresh_token="1//r"):
        return user_credentials.Credentials(None, refresh_token=refresh_token, client_id="c", client_secret=secret, token_uri=f"{address}/token")

    check(call(client(user()).encrypt, name=KEY, plaintext=plain), "a user")
    raises(gone, lambda: call(client(user(secret="t")).encrypt, name=KEY, plaintext=plain), "a wrong client", text="invalid_client")
    raises(gone, lambda: call(client(user(refresh_token="1//q")).encrypt, name=KEY, plaintext=plain), "a revoked refresh token", text="invalid_grant")

    source = by_file(account("source@p.iam.gserviceaccount.com"))
    acting = impersonated_credentials.Credentials(source, "byok@p.iam.gserviceaccount.com", [CLOUD], iam_endpoint_override=f"{address}/v1/projects/-/serviceAccounts/byok@p.iam.gserviceaccount.com:generateAccessToken")
    raises(gone, lambda: acting.refresh(google.auth.transport.requests.Request()), "impersonation without the right", text="PERMISSION_DENIED")
    control("v1/projects/-/serviceAccounts/byok@p.iam.gserviceaccount.com:setIamPolicy", policy={"bindings": [
        {"role": "roles/iam.serviceAccountTokenCreator", "members": ["serviceAccount:source@p.iam.gserviceaccount.com"]}]})
    check(call(client(acting).encrypt, name=KEY, plaintext=plain), "impersonation")

    control("settings", machine="byok@p.iam.gserviceaccount.com")
    machine = compute_engine.Credentials()
    check(call(client(machine).encrypt, name=KEY, plaintext=plain), "the metadata server's token is good")
    got = machine.token
    machine.refresh(google.auth.transport.requests.Request())
    check(machine.token == got and machine.service_account_email == "byok@p.iam.gserviceaccount.com", "it is the same again while it lasts")
    plainly = urllib.request.Request(f"{address}/computeMetadata/v1/instance/service-accounts/default/token")
    check(raises(urllib.error.HTTPError, lambda: urllib.request.urlopen(plainly), "without Metadata-Flavor").code == 403, "403")

    # Quota, outages and answers that were told.
    control("quota", crypto=0, retry_after=7)
    error = refused(exceptions.ResourceExhausted, encrypt, "above the quota", "RATE_LIMIT_EXCEEDED")
    check(error.response.headers["Retry-After"] == "7", "Retry-After")
    control("quota", crypto=60000, reads=0)
    check(encrypt(), "crypto calls have a quota of their own")
    refused(exceptions.ResourceExhausted, lambda: call(admin.get_crypto_key, name=KEY), "reads have one too")
    for status, kind in (("UNAVAILABLE", exceptions.ServiceUnavailable), ("INTERNAL", exceptions.InternalServerError), ("DEADLINE_EXCEEDED", exceptions.DeadlineExceeded)):
        control("fault", on="encrypt", refuse={"status": status})
        refused(kind, encrypt, status)
    control("fault", on="encrypt", refuse={"status": "PERMISSION_DENIED", "reason": "SERVICE_DISABLED", "message": "Cloud KMS API has not been used"})
    refused(denied, encrypt, "the service is off", "SERVICE_DISABLED")
    control("fault", on="encrypt", alter="ciphertext")
    torn = encrypt()
    check(torn.ciphertext_crc32c != crc32c(torn.ciphertext), "an answer altered on its way")
    control("fault", on="encrypt", alter="verifiedPlaintextCrc32c")
    check(not encrypt().verified_plaintext_crc32c, "an answer that verified nothing")
    control("fault", on="encrypt", alter_request="plaintext")
    refused(invalid, encrypt, "a request altered on its way", text="checksum")
    check(control("counters")["encrypt"] > 20, "calls are counted")
finally:
    server.stdin.close()
    server.wait(10)

print(f"{checks} checks: the stand-in answers Google's own client as Google does")

#!/usr/bin/env python3
"""Writes the test vectors beside this file, from the format's description alone.

It shares no code with src/crypto and uses another library, so that the two check one another. Every input is derived
from a vector's name, so a second run writes the same files. Needs Python 3.9 and the package `cryptography`.
"""

import base64
import hashlib
import hmac
import json
import pathlib

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SUITE = b"byok/v1/HKDF-SHA256/AES-256-GCM"
ENCRYPTION = b"byok/v1/encryption"
COMMITMENT = b"byok/v1/commitment"
HERE = pathlib.Path(__file__).parent


# The format

def sha256(data):
    return hashlib.sha256(data).digest()


def u32(number, order="big"):
    return number.to_bytes(4, order)


def canonical(pairs, order="big"):
    encoded = [(k.encode(), v.encode()) for k, v in pairs]
    out = u32(len(encoded), order)
    for key, value in sorted(encoded):
        out += u32(len(key), order) + key + u32(len(value), order) + value
    return out


def hkdf(secret, info, length=32, salt=b""):
    prk = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    block, out, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        out, counter = out + block, counter + 1
    return out[:length]


def text(body):
    return "byok:v1:" + base64.urlsafe_b64encode(body).decode().rstrip("=")


class Sealed:
    """A token and everything it was made of. Keyword arguments make wrong ones."""

    def __init__(self, name, pairs, plaintext, *, suite=SUITE, encryption=ENCRYPTION, commitment=COMMITMENT,
                 order="big", aad=None, salt=b"", context_digest=None, transcript=None, **fixed):
        derived = {
            "tenant_uid": sha256(b"tenant " + name.encode())[:16],
            "dek_id": sha256(b"dek id " + name.encode())[:16],
            "dek": sha256(b"dek " + name.encode()),
            "nonce": sha256(b"nonce " + name.encode())[:12],
        }
        derived.update(fixed)
        self.__dict__.update(derived)
        self.pairs, self.plaintext = pairs, plaintext
        digest = context_digest or sha256(canonical(pairs, order))
        self.transcript = transcript or sha256(suite + self.tenant_uid + self.dek_id + digest)
        self.encryption_key = hkdf(self.dek, encryption + self.transcript, salt=salt)
        self.commitment = hkdf(self.dek, commitment + self.transcript, salt=salt)
        self.ciphertext = AESGCM(self.encryption_key).encrypt(self.nonce, plaintext, aad)

    def body(self, **changed):
        part = {**self.__dict__, **changed}
        return part["dek_id"] + part["commitment"] + part["nonce"] + part["ciphertext"]

    def token(self, **changed):
        return text(self.body(**changed))

    def good(self, name):
        return {
            "name": name, "tenant_uid": self.tenant_uid.hex(), "dek_id": self.dek_id.hex(), "dek": self.dek.hex(),
            "context": self.pairs, "nonce": self.nonce.hex(), "plaintext": self.plaintext.hex(),
            "transcript": self.transcript.hex(), "encryption_key": self.encryption_key.hex(),
            "commitment": self.commitment.hex(), "token": self.token(),
        }

    def refused(self, name, token=None, **asked):
        """This token, opened with what `asked` says in place of what it was sealed with."""
        with_ = {**self.__dict__, **asked}
        return {
            "name": name, "tenant_uid": with_["tenant_uid"].hex(), "dek_id": with_["dek_id"].hex(),
            "dek": with_["dek"].hex(), "context": with_["pairs"], "token": token or self.token(),
            "error": "DecryptFailed",
        }


# One ciphertext, two keys

def times(a, b):
    """Multiplication in GCM's field (SP 800-38D, 6.3); bit 0 is the leftmost."""
    product = 0
    for bit in range(127, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (0xE1 << 120 if b & 1 else 0)
    return product


def inverse(a):
    result, power = 1 << 127, a
    for _ in range(127):  # a^(2^128 - 2)
        power = times(power, power)
        result = times(result, power)
    return result


def block(key, data):
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def two_faced(first_key, second_key, nonce, first_text):
    """A ciphertext and tag that AES-GCM opens under both keys: one free block solves for one common tag."""
    assert len(first_text) == 16
    number = lambda data: int.from_bytes(data, "big")
    stream = block(first_key, nonce + u32(2))
    chosen = bytes(a ^ b for a, b in zip(first_text, stream))
    length = number(bytes(8) + (256).to_bytes(8, "big"))
    constant, factor = 0, 0
    for key in (first_key, second_key):
        h = number(block(key, bytes(16)))
        h2 = times(h, h)
        constant ^= times(number(chosen), times(h2, h)) ^ times(length, h) ^ number(block(key, nonce + u32(1)))
        factor ^= h2
    free = times(constant, inverse(factor)).to_bytes(16, "big")
    h = number(block(first_key, bytes(16)))
    h2 = times(h, h)
    tag = (times(number(chosen), times(h2, h)) ^ times(number(free), h2) ^ times(length, h)
           ^ number(block(first_key, nonce + u32(1))))
    return chosen + free + tag.to_bytes(16, "big")


# The vectors

RECORD = [["record_id", "patient-7"], ["field", "diagnosis"]]


def contexts():
    good = [
        ("no pairs", []),
        ("one pair", [["record_id", "7"]]),
        ("sorted by key", [["b", "2"], ["a", "1"]]),
        ("sorted by bytes: upper case before lower, ASCII before the rest", [["é", "4"], ["a", "3"], ["Z", "2"], ["0", "1"]]),
        ("sorted by UTF-8, which is not UTF-16's order", [["\U0001F511", "2"], ["\uff5e", "1"]]),
        ("a key before the longer one that it begins", [["ab", "2"], ["a", "1"]]),
        ("an empty value", [["a", ""]]),
        ("a value that looks like an encoding", [["a", "\x00\x00\x00\x01b"]]),
        ("composed é", [["name", "caf\u00e9"]]),
        ("decomposed é is another context", [["name", "cafe\u0301"]]),
        ("white space counts", [[" a ", " 1\n"]]),
        ("a NUL in key and value", [["a\x00", "\x00"]]),
        ("64 pairs", [[f"k{n}", str(n)] for n in range(64)]),
    ]
    bad = [
        ("the same key twice", [["a", "1"], ["a", "2"]], "DuplicateKey"),
        ("the same pair twice", [["a", "1"], ["b", "2"], ["a", "1"]], "DuplicateKey"),
        ("an empty key", [["", "1"]], "EmptyKey"),
        ("an empty key among others", [["a", "1"], ["", ""]], "EmptyKey"),
        ("65 pairs", [[f"k{n}", str(n)] for n in range(65)], "TooManyPairs"),
        ("one byte too many", [["k", "v" * (16 * 1024 - 12)]], "TooLarge"),
    ]
    return {
        "good": [{"name": n, "context": p, "canonical": canonical(p).hex(), "digest": sha256(canonical(p)).hex()}
                 for n, p in good],
        "bad": [{"name": n, "context": p, "error": e} for n, p, e in bad],
    }


def seals():
    cases = [
        ("a text", RECORD, b"Type 2 diabetes"),
        ("an empty plaintext", RECORD, b""),
        ("one byte", RECORD, b"\x00"),
        ("exactly one AES block", RECORD, b"0123456789abcdef"),
        ("64 bytes", RECORD, bytes(range(64))),
        ("1000 bytes", RECORD, bytes(n * 7 % 256 for n in range(1000))),
        ("not UTF-8", RECORD, b"\xff\xfe\xfd"),
        ("an empty context", [], b"no context at all"),
        ("an empty value", [["record_id", ""]], b"x"),
        ("Unicode", [["record_id", "zażółć"], ["поле", "\U0001F511"]], "gęślą jaźń".encode()),
        ("many pairs", [[f"k{n}", str(n)] for n in range(64)], b"64 pairs"),
    ]
    out = [Sealed(n, p, t).good(n) for n, p, t in cases]
    extremes = dict(tenant_uid=bytes(16), dek_id=bytes(16), dek=bytes(32), nonce=bytes(12))
    out.append(Sealed("zeros", RECORD, bytes(16), **extremes).good("everything zero"))
    extremes = {name: b"\xff" * len(value) for name, value in extremes.items()}
    out.append(Sealed("ones", RECORD, b"\xff" * 16, **extremes).good("everything one"))
    return out


def unreadable():
    token = Sealed("unreadable", RECORD, b"Type 2 diabetes").token()          # 91 bytes: two bits left over
    short = Sealed("unreadable", RECORD, b"").token()                         # 76 bytes: four bits left over
    body, raw = token[8:], Sealed("unreadable", RECORD, b"")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    next_one = lambda character: alphabet[alphabet.index(character) + 1]
    at = lambda place, put: token[:place] + put + token[place + 1:]
    assert len(body) % 4 == 2 and len(short[8:]) % 4 == 2
    cases = [
        ("nothing", "", "NotAToken"),
        ("some text", "hello", "NotAToken"),
        ("an unencrypted value", "Type 2 diabetes", "NotAToken"),
        ("the body alone", body, "NotAToken"),
        ("half a prefix", "byok:", "NotAToken"),
        ("no version", "byok::" + body, "NotAToken"),
        ("a version without its number", "byok:v:" + body, "NotAToken"),
        ("a version without its colon", "byok:v1" + body, "NotAToken"),
        ("version zero", "byok:v0:" + body, "NotAToken"),
        ("a version with a leading zero", "byok:v01:" + body, "NotAToken"),
        ("a version with a sign", "byok:v+1:" + body, "NotAToken"),
        ("a version with a full-width digit", "byok:v\uff11:" + body, "NotAToken"),
        ("a version in words", "byok:vone:" + body, "NotAToken"),
        ("a version with a fraction", "byok:v1.1:" + body, "NotAToken"),
        ("upper case prefix", "BYOK:v1:" + body, "NotAToken"),
        ("upper case version", "byok:V1:" + body, "NotAToken"),
        ("a space before", " " + token, "NotAToken"),
        ("a byte order mark before", "\ufeff" + token, "NotAToken"),
        ("a Vault token", "vault:v1:" + body, "NotAToken"),
        ("a JWT", "eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "NotAToken"),
        ("in quotes", f'"{token}"', "NotAToken"),
        ("version 2", "byok:v2:" + body, "UnsupportedVersion"),
        ("version 2 with nothing after it", "byok:v2:", "UnsupportedVersion"),
        ("version 2 in another alphabet", "byok:v2:{}", "UnsupportedVersion"),
        ("version 10", "byok:v10:" + body, "UnsupportedVersion"),
        ("a version beyond 64 bits", "byok:v99999999999999999999999:" + body, "UnsupportedVersion"),
        ("the prefix alone", "byok:v1:", "Truncated"),
        ("one character", "byok:v1:A", "Truncated"),
        ("cut in the DEK id", token[:20], "Truncated"),
        ("cut in the commitment", token[:60], "Truncated"),
        ("cut in the nonce", token[:80], "Truncated"),
        ("header only", token[:88], "Truncated"),
        ("half a tag", token[:98], "Truncated"),
        ("75 bytes", text(raw.body()[:75]), "Truncated"),
        ("short and not base64", "byok:v1:!!!!", "Truncated"),
        ("padded", token + "==", "NotCanonical"),
        ("padded by one", token + "=", "NotCanonical"),
        ("one character cut off", token[:-1], "NotCanonical"),
        ("one character too many for a byte", token + "AAA", "NotCanonical"),
        ("bits left over, two characters", token[:-1] + next_one(token[-1]), "NotCanonical"),
        ("bits left over, empty plaintext", short[:-1] + next_one(short[-1]), "NotCanonical"),
        ("bits left over, three characters", text(raw.body() + b"\x00")[:-1] + "B", "NotCanonical"),
        ("a plus sign", at(30, "+"), "NotCanonical"),
        ("a slash", at(100, "/"), "NotCanonical"),
        ("a space in the header", at(30, " "), "NotCanonical"),
        ("a line feed in the ciphertext", at(100, "\n"), "NotCanonical"),
        ("a line feed after", token + "\n", "NotCanonical"),
        ("CR and LF at column 64", token[:64] + "\r\n" + token[64:], "NotCanonical"),
        ("a NUL after", token + "\x00", "NotCanonical"),
        ("a dot", at(50, "."), "NotCanonical"),
        ("a percent escape", token[:-1] + "%3D", "NotCanonical"),
        ("a letter from another alphabet", at(40, "\u0410"), "NotCanonical"),
        ("an invisible character", at(40, "\u200b"), "NotCanonical"),
        ("the prefix twice", "byok:v1:" + token, "NotCanonical"),
        ("two tokens", token + "," + token, "NotCanonical"),
    ]
    return [{"name": n, "token": t, "error": e} for n, t, e in cases]


def refused():
    plain = b"Type 2 diabetes"
    it = Sealed("it", RECORD, plain)
    other = Sealed("other", RECORD, plain)
    same_dek = Sealed("it", [["record_id", "patient-8"], ["field", "diagnosis"]], b"Healthy, in fact")
    flip = lambda data, byte, bit=0: data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1:]
    wrong = lambda name, **how: Sealed("it", RECORD, plain, **how).refused(name)
    swap = lambda **how: it.token(**how)
    bodies = lambda *parts: text(b"".join(parts))
    cases = [
        # Asked for with something else than it was sealed with.
        it.refused("another tenant", tenant_uid=other.tenant_uid),
        it.refused("another tenant, one bit", tenant_uid=flip(it.tenant_uid, 15)),
        it.refused("another DEK", dek=other.dek),
        it.refused("another DEK, one bit", dek=flip(it.dek, 0, 7)),
        it.refused("the DEK of a row with another id", dek_id=other.dek_id),
        it.refused("tenant and DEK id exchanged", tenant_uid=it.dek_id, dek_id=it.tenant_uid),
        it.refused("another record", pairs=[["record_id", "patient-8"], ["field", "diagnosis"]]),
        it.refused("another field", pairs=[["record_id", "patient-7"], ["field", "name"]]),
        it.refused("values exchanged", pairs=[["record_id", "diagnosis"], ["field", "patient-7"]]),
        it.refused("a pair missing", pairs=[["record_id", "patient-7"]]),
        it.refused("a pair too many", pairs=RECORD + [["x", ""]]),
        it.refused("no context", pairs=[]),
        it.refused("a key in upper case", pairs=[["Record_id", "patient-7"], ["field", "diagnosis"]]),
        it.refused("a space after a value", pairs=[["record_id", "patient-7 "], ["field", "diagnosis"]]),
        Sealed("it", [["n", "caf\u00e9"]], plain).refused("another Unicode form", pairs=[["n", "cafe\u0301"]]),
        Sealed("it", [["ab", "c"]], plain).refused("a boundary moved", pairs=[["a", "bc"]]),
        Sealed("it", [["a", "1"], ["b", ""]], plain).refused("an empty value left out", pairs=[["a", "1"]]),
        # Changed.
        it.refused("DEK id, one bit", swap(dek_id=flip(it.dek_id, 0))),
        it.refused("commitment, first bit", swap(commitment=flip(it.commitment, 0, 7))),
        it.refused("commitment, last bit", swap(commitment=flip(it.commitment, 31))),
        it.refused("commitment of zeros", swap(commitment=bytes(32))),
        it.refused("nonce, one bit", swap(nonce=flip(it.nonce, 11))),
        it.refused("ciphertext, one bit", swap(ciphertext=flip(it.ciphertext, 3, 4))),
        it.refused("tag, first bit", swap(ciphertext=flip(it.ciphertext, len(plain), 7))),
        it.refused("tag, last bit", swap(ciphertext=flip(it.ciphertext, len(it.ciphertext) - 1))),
        it.refused("tag of zeros", swap(ciphertext=it.ciphertext[:-16] + bytes(16))),
        it.refused("one byte cut from the ciphertext", swap(ciphertext=it.ciphertext[1:])),
        it.refused("one byte cut from the tag", swap(ciphertext=it.ciphertext[:-1])),
        it.refused("one byte added", swap(ciphertext=it.ciphertext + b"\x00")),
        it.refused("only the tag left", swap(ciphertext=it.ciphertext[-16:])),
        it.refused("ciphertext and tag exchanged", swap(ciphertext=it.ciphertext[-16:] + it.ciphertext[:-16])),
        # Put together from several.
        it.refused("another token under this id", other.token(dek_id=it.dek_id)),
        it.refused("another token's commitment", swap(commitment=other.commitment)),
        it.refused("another token's nonce", swap(nonce=other.nonce)),
        it.refused("another token's ciphertext", swap(ciphertext=other.ciphertext)),
        it.refused("another field's ciphertext, same DEK", swap(ciphertext=same_dek.ciphertext)),
        it.refused("another field's token, same DEK", same_dek.token()),
        it.refused("nonce before commitment", bodies(it.dek_id, it.nonce, it.commitment, it.ciphertext)),
        # Made by a program that read the format wrongly.
        it.refused("the DEK itself is the key", swap(ciphertext=AESGCM(it.dek).encrypt(it.nonce, plain, None))),
        wrong("labels exchanged", encryption=COMMITMENT, commitment=ENCRYPTION),
        wrong("one label for both", commitment=ENCRYPTION),
        wrong("labels of v2", encryption=b"byok/v2/encryption", commitment=b"byok/v2/commitment"),
        wrong("another suite", suite=b"byok/v1/HKDF-SHA256/AES-128-GCM"),
        wrong("no suite", suite=b""),
        wrong("the context not hashed", transcript=sha256(SUITE + it.tenant_uid + it.dek_id + canonical(RECORD))),
        wrong("the digest of the context in hexadecimal",
              context_digest=sha256(canonical(RECORD)).hex().encode()),
        wrong("T without the DEK id", transcript=sha256(SUITE + it.tenant_uid + sha256(canonical(RECORD)))),
        wrong("T without the tenant", transcript=sha256(SUITE + it.dek_id + sha256(canonical(RECORD)))),
        wrong("T in another order", transcript=sha256(SUITE + it.dek_id + it.tenant_uid + sha256(canonical(RECORD)))),
        wrong("little-endian lengths", order="little"),
        wrong("the context as JSON", context_digest=sha256(json.dumps(dict(RECORD)).encode())),
        wrong("the pairs not sorted", context_digest=sha256(
            u32(2) + b"".join(u32(len(t)) + t.encode() for pair in RECORD for t in pair))),
        wrong("a salt", salt=b"byok"),
        wrong("T as associated data", aad=it.transcript),
        wrong("the context as associated data", aad=canonical(RECORD)),
    ]
    # One ciphertext that AES-GCM opens under two DEKs, as whoever swaps the wrapped DEK would have it.
    honest = Sealed("honest", RECORD, plain)
    evil = Sealed("evil", RECORD, plain, tenant_uid=honest.tenant_uid, dek_id=honest.dek_id)
    both = two_faced(honest.encryption_key, evil.encryption_key, honest.nonce, b"pay Alice 10 EUR")
    for sealed, dek, name in [(honest, evil, "opens under two keys, committed to the first"),
                              (evil, honest, "opens under two keys, committed to the second")]:
        token = sealed.token(nonce=honest.nonce, ciphertext=both)
        opened = AESGCM(dek.encryption_key).decrypt(honest.nonce, both, None)
        cases.append(dek.refused(name, token) | {"aead_alone_opens": opened.hex()})
    return cases


def write(name, content):
    (HERE / name).write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n")


write("context.json", contexts())
write("seal.json", seals())
write("unreadable.json", unreadable())
write("refused.json", refused())

"""Lets a verifier that others wrote judge an attestation document of ours: epsilon-attestation-verifier (PyPI), which takes the root as a parameter.

    check.py DOCUMENT ROOT_PEM NONCE_HEX PCR0 PCR1 PCR2

It must accept the document as it is, refuse it under another root's name and with other PCRs, and refuse it with any byte changed, each in turn. Two
bytes of the envelope are no part of what is signed, as COSE has it: the head of the array of four, and the unprotected header, an empty map of one byte.
The values tried here make them malformed; with another item of one byte in place of that map (null, say) this verifier would accept, as it never
looks there. Ours refuses that.

Prints what was found, and ends with 0 if all of it is as it must be. `cargo xtask verifier` runs it.
"""

import base64
import logging
import sys
import warnings

import cbor2
from cryptography.x509 import load_der_x509_certificate
from epsilon_verifier import verify_attestation
from epsilon_verifier.verifier import _verify_certificate_chain

# How a byte is changed.
CHANGES = (0x01, 0xFF)


def main():
    document_path, root, nonce, *pcrs = sys.argv[1:]
    with open(document_path, "rb") as file:
        document = file.read()
    wrong = []

    def expect(holds, what):
        print(f"{'ok    ' if holds else 'FAILED'} {what}")
        if not holds:
            wrong.append(what)

    def accepts(candidate, **expected):
        text = base64.b64encode(candidate).decode()
        return verify_attestation(text, aws_root_cert_path=root, **expected)

    names = ("expected_pcr0", "expected_pcr1", "expected_pcr2")
    verdict = accepts(document, **dict(zip(names, pcrs)))
    expect(verdict.valid, f"the document is accepted, {len(document)} bytes ({verdict.error or 'no error'})")
    expect(verdict.valid and verdict.attestation.nonce == bytes.fromhex(nonce), "it carries the nonce")
    for name, pcr in zip(names, pcrs):
        other = f"{int(pcr[0], 16) ^ 1:x}{pcr[1:]}"
        expect(not accepts(document, **{name: other}).valid, f"another {name[9:].upper()} is refused")

    # From here on refusals are expected by the thousand; nobody wants to read what each says.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    taken = [
        (at, change)
        for at in range(len(document))
        for change in CHANGES
        if accepts(changed(document, at, change)).valid
    ]
    expect(not taken, f"each byte changed in turn, {len(CHANGES)} ways: {len(taken)} documents accepted {taken[:9]}")

    # The signature covers certificate and bundle as well. This is what the chain is worth without it. The bundle's copy of the root is left out: where its
    # name no longer fits, the chain ends one earlier, at a certificate that the trusted root signed all the same. So is the byte before each certificate's
    # signature, which counts the unused bits of its last byte: nothing signs it, and this verifier's library does not mind a 1 where that bit is 0.
    payload = cbor2.loads(cbor2.loads(document)[2])
    root_copy, *bundle = payload["cabundle"]
    chain = [payload["certificate"], *bundle]
    taken = []
    for number, certificate in enumerate(chain):
        unused_bits = len(certificate) - len(load_der_x509_certificate(certificate).signature) - 1
        for at in range(len(certificate)):
            if at == unused_bits:
                continue
            other = list(chain)
            other[number] = changed(certificate, at, 0x01)
            if chain_holds(other[0], [root_copy, *other[1:]], root):
                taken.append((number, at))
    size = sum(map(len, chain))
    expect(not taken, f"each of the {size} bytes below the root, by the chain alone: {len(taken)} accepted {taken[:9]}")
    return 1 if wrong else 0


def changed(data, at, change):
    copy = bytearray(data)
    copy[at] ^= change
    return bytes(copy)


def chain_holds(leaf, bundle, root):
    try:
        return _verify_certificate_chain(leaf, bundle, root)
    except Exception:  # What cannot be read is refused by an exception.
        return False


if __name__ == "__main__":
    sys.exit(main())

"""What the coordinator refuses, the bytes of messages, identities and instances."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.privacy.secure_sum_play import (
    SPARSE,
    instance_of,
    play,
    refuses,
    rejects,
    sign_as,
    site_of,
    verify,
)

from asterion_shared.errors import (
    OrderRefusedError,
    QuorumLostError,
    ReportRejectedError,
    UserInputError,
)
from asterion_shared.privacy import secure_sum as protocol
from asterion_shared.privacy import secure_sum_messages as wire
from asterion_shared.privacy.secure_sum import elliptic_signer, elliptic_verifier
from asterion_shared.privacy.secure_sum_centre import CentreSum
from asterion_shared.privacy.secure_sum_graph import choose_sharing
from asterion_shared.privacy.secure_sum_messages import (
    KeyList,
    Masked,
    ToCentre,
    ToSite,
    Unmasking,
)
from asterion_shared.privacy.shamir import PRIME, SHARE_BYTES

# What the coordinator refuses


def test_the_centre_refuses_what_is_not_a_sites_own() -> None:
    instance = instance_of()
    centre = CentreSum(instance, verify=verify)
    first, second = (site_of(instance, name).keys() for name in ("s00", "s01"))
    centre.accept_keys(first)
    old = site_of(instance_of(id_="two"), "s01").keys()
    rejects("sign the keys", lambda: centre.accept_keys(replace(second, signature=b"")))
    rejects("another instance", lambda: centre.accept_keys(old))
    rejects("second Keys", lambda: centre.accept_keys(first))
    rejects("not asked", lambda: centre.accept_keys(replace(second, site="s99")))
    copied = replace(second, mask_public=first.mask_public)
    copied = replace(copied, signature=sign_as("s01")(protocol.keys_statement(instance, copied)))
    rejects("the same", lambda: centre.accept_keys(copied))
    centre.accept_keys(second)
    with pytest.raises(QuorumLostError, match="2 of 5 sites answered, 4 are needed"):
        centre.close_keys()
    rejects("in phase DONE", lambda: centre.accept_keys(site_of(instance, "s02").keys()))


def test_the_centre_refuses_a_nonce_that_was_not_settled_on() -> None:
    instance = instance_of(sharing=SPARSE)
    done = play(instance, "keys")
    right = done.sites["s00"].reveal(done.key_list)
    keys_hash = protocol.keys_hash_of(instance, done.key_list.keys)
    late = replace(right, nonce=bytes(32))
    late = replace(
        late, signature=sign_as("s00")(protocol.reveal_statement(instance, keys_hash, late))
    )
    for lie in (late, replace(right, signature=b"")):
        rejects("settled on", lambda m=lie: done.centre.accept_reveal(m))
    done.centre.accept_reveal(right)


def test_a_refused_vector_leaves_the_total_as_it_was() -> None:
    instance = instance_of()
    done = play(instance, "shares")
    assert done.inboxes is not None
    vector = np.array([1, 2, 3, 4], np.uint32)
    masked = [site.masked(done.inboxes[name], vector) for name, site in done.sites.items()]
    wrong = [
        ("the vector is", replace(masked[0], vector=np.zeros(3, np.uint32))),
        ("the vector is", replace(masked[0], vector=np.zeros(4, np.uint64))),
        ("another's", replace(masked[0], inclusion=masked[1].inclusion)),
        ("did not sign", replace(masked[0], inclusion=replace(masked[0].inclusion, signature=b""))),
    ]
    for words, message in wrong:
        rejects(words, lambda m=message: done.centre.accept_masked(m))
    for one in masked:
        done.centre.accept_masked(one)
    rejects("second Masked", lambda: done.centre.accept_masked(masked[2]))
    survivors = done.centre.close_masked()
    for site in done.sites.values():
        agreement = site.agree(survivors)
        forged = replace(agreement, survivors_hash=bytes(32))
        rejects("these survivors", lambda m=forged: done.centre.accept_agreement(m))
        done.centre.accept_agreement(agreement)
    signed = done.centre.close_agreements()
    for site in done.sites.values():
        done.centre.accept_unmasking(site.unmask(signed))
    assert done.centre.finish().tolist() == [5, 10, 15, 20]


def spoiled(unmasking: Unmasking) -> Unmasking:
    seeds = tuple(
        (owner, (1).to_bytes(SHARE_BYTES, "little")) for owner, _ in unmasking.seed_shares
    )
    return replace(unmasking, seed_shares=seeds)


@pytest.mark.parametrize("liars", [0, 1, 2])
def test_a_wrong_share_is_passed_over_and_two_are_noticed(liars: int) -> None:
    """5 sites, 4 shares needed: one liar can be left out, two cannot."""
    done = play(instance_of(), "agree")
    assert done.signed is not None
    for i, site in enumerate(done.sites.values()):
        unmasking = site.unmask(done.signed)
        if i == 0:
            outside = PRIME.to_bytes(SHARE_BYTES, "little")
            bad = tuple((owner, outside) for owner, _ in unmasking.seed_shares)
            bad_shares = replace(unmasking, seed_shares=bad)
            rejects("field", lambda m=bad_shares: done.centre.accept_unmasking(m))
            short = replace(unmasking, seed_shares=unmasking.seed_shares[1:])
            rejects("each peer", lambda m=short: done.centre.accept_unmasking(m))
        done.centre.accept_unmasking(spoiled(unmasking) if i < liars else unmasking)
    if liars == 2:
        with pytest.raises(QuorumLostError, match="some site sent wrong ones"):
            done.centre.finish()
    else:
        assert done.centre.finish().tolist() == [5] * 4


def test_phases_are_closed_in_order() -> None:
    done = play(instance_of(), "shares")
    for close in (done.centre.close_keys, done.centre.close_agreements, done.centre.finish):
        with pytest.raises(ValueError, match="phase"):
            close()


# Bytes


def messages() -> list[ToCentre | ToSite]:
    instance = instance_of(sharing=SPARSE)
    done = play(instance, "agree")
    assert done.reveals is not None
    assert done.inboxes is not None
    assert done.masked is not None
    assert done.survivors is not None
    assert done.signed is not None
    shares = play(instance, "reveal")
    assert shares.reveals is not None
    return [
        done.key_list.keys[0], done.key_list, done.reveals.reveals[0], done.reveals,
        shares.sites["s00"].shares(shares.reveals), done.inboxes["s00"],
        done.masked["s00"].inclusion, done.masked["s00"], done.survivors,
        done.signed.agreements[0], done.signed, done.sites["s00"].unmask(done.signed),
    ]  # fmt: skip


MESSAGES = messages()


def read(message: ToCentre | ToSite, content: bytes) -> ToCentre | ToSite:
    if isinstance(message, ToCentre):
        return type(message).from_bytes(content, "s00")
    return type(message).from_bytes(content)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_travel_and_no_shorter_one_is_read(message: ToCentre | ToSite) -> None:
    content = message.to_bytes()
    assert read(message, content).to_bytes() == content
    if not isinstance(message, Masked):
        assert read(message, content) == message
    error = ReportRejectedError if isinstance(message, ToCentre) else OrderRefusedError
    for size in {*range(min(len(content), 300)), len(content) - 1}:
        with pytest.raises(error, match=f"no {type(message).__name__}"):
            read(message, content[:size])
    with pytest.raises(error, match="1 bytes too many"):
        read(message, content + b"\0")


@settings(max_examples=300, deadline=None)
@given(message=st.sampled_from(MESSAGES), at=st.integers(0, 1 << 16), put=st.binary(max_size=9))
def test_changed_bytes_are_read_or_refused(message: ToCentre | ToSite, at: int, put: bytes) -> None:
    content = message.to_bytes()
    at %= len(content)
    changed = content[:at] + put + content[at + len(put) :]
    with suppress(ReportRejectedError, OrderRefusedError):
        read(message, changed)


def test_lengths_are_believed_only_when_the_bytes_are_there() -> None:
    head = wire.Masked.kind + bytes(32) + b"\3\0s00"
    inclusion = MESSAGES[6].to_bytes()
    for tail in (
        b"\4" + (1 << 31).to_bytes(8, "little"), b"\4" + b"\xff" * 8, b"\3" + bytes(8),
    ):  # fmt: skip
        rejects("no Masked", lambda t=tail: Masked.from_bytes(head + inclusion + t, "s00"))
    many = wire.KeyList.kind + bytes(32) + b"\xff" * 4
    refuses("secure_sum_malformed", "at most 1000", lambda: KeyList.from_bytes(many))
    for name in (b"\0\0", b"\2\0\xff\xff"):
        rejects("a name is", lambda n=name: wire.Reveal.from_bytes(
            wire.Reveal.kind + bytes(32) + n + bytes(40), "s00"))  # fmt: skip


def test_a_message_that_names_another_site_than_its_sender_is_refused() -> None:
    keys = MESSAGES[0].to_bytes()
    rejects("names the site 's00'", lambda: wire.Keys.from_bytes(keys, "s01"))


# Identities and instances


def test_identity_keys_sign_and_verify() -> None:
    mine, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    check = elliptic_verifier({"a": mine.public_key(), "b": other.public_key()})
    signature = elliptic_signer(mine)(b"text")
    assert len(signature) <= wire.MAX_SIGNATURE_BYTES
    assert check("a", b"text", signature)
    assert not check("a", b"texT", signature)
    assert not check("b", b"text", signature)
    assert not check("c", b"text", signature)
    assert not check("a", b"text", b"no signature")


def test_every_field_changes_the_instance() -> None:
    base = instance_of()
    fewer = choose_sharing(5, max_colluders=0, max_dropouts=0)
    changes: list[dict[str, object]] = [
        {"run": "other"}, {"id": "other"}, {"round": 4}, {"bits": 33}, {"length": 5},
        {"sharing": fewer}, {"sites": ("s00", "s01", "s02", "s03", "s05")},
        {"run": "ru", "id": "none"}, {"order_sha256": "other"},
    ]  # fmt: skip
    digests = {replace(base, **change).digest for change in changes}
    assert len(digests | {base.digest}) == len(changes) + 1
    assert base.digest == instance_of().digest


@pytest.mark.parametrize("change", [
    {"sites": ("s00", "s01", "s02", "s03")}, {"sites": ("s01", "s00", "s02", "s03", "s04")},
    {"sites": ("s00", "s00", "s02", "s03", "s04")}, {"bits": 65}, {"length": 0}, {"id": ""},
    {"round": -1},
])  # fmt: skip
def test_instances_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(UserInputError):
        replace(instance_of(), **change)

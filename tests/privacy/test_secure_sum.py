"""A dishonest server is refused by an honest site; a masked vector alone says nothing."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy.stats import chi2
from tests.privacy.secure_sum_play import (
    FORGED,
    OUT_OF_STEP,
    SPARSE,
    TOO_FEW,
    TWO_SETS,
    Records,
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
)
from asterion_shared.privacy import secure_sum as protocol
from asterion_shared.privacy.secure_sum_centre import CentreSum
from asterion_shared.privacy.secure_sum_graph import choose_sharing, neighbours_of
from asterion_shared.privacy.secure_sum_messages import (
    AgreementList,
    Inbox,
    Survivors,
)
from asterion_shared.privacy.secure_sum_site import SiteSum

# What a masked vector says


def test_a_masked_vector_looks_uniform_and_never_twice_the_same() -> None:
    length = 1 << 16
    vectors = []
    for id_ in ("one", "two", "two"):
        instance = instance_of(3, id_=id_, length=length)
        done = play(instance, "shares")
        assert done.inboxes is not None
        zeros = np.zeros(length, np.uint32)
        vectors.append(done.sites["s00"].masked(done.inboxes["s00"], zeros).vector)
        assert not zeros.any()
    differences = [vectors[0] - vectors[1], vectors[1] - vectors[2], vectors[0] ^ vectors[2]]
    for vector in (*vectors, *differences):
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        expected = 4 * length / 256
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert 1e-9 < chi2.sf(statistic, 255) < 1 - 1e-9


def test_the_total_before_unmasking_is_masked() -> None:
    """Pairwise masks cancel, own masks do not."""
    done = play(instance_of(5, length=1 << 12), "masked")
    assert done.masked is not None
    total = np.zeros(1 << 12, np.uint32)
    for masked in done.masked.values():
        total += masked.vector
    assert np.mean(total == 5) < 0.01
    assert done.signed is None


@pytest.mark.parametrize("bits", [20, 32])
def test_a_vector_outside_the_modulus_is_refused(bits: int) -> None:
    instance = instance_of(bits=bits)
    done = play(instance, "shares")
    assert done.inboxes is not None
    site, inbox = done.sites["s00"], done.inboxes["s00"]
    bad = [np.zeros(5, np.uint32), np.zeros(4, np.uint64), np.zeros((4, 1), np.uint32)]
    if bits == 20:
        bad.append(np.full(4, 1 << 20, np.uint32))
    for vector in bad:
        refuses("secure_sum_out_of_range", "the vector", lambda v=vector: site.masked(inbox, v))
    # The own caller's mistake does not end the instance.
    assert site.masked(inbox, np.full(4, (1 << bits) - 1, np.uint32)).vector.max() < 1 << bits


# A server that changes the keys


def test_keys_of_the_server_in_a_peers_place_are_refused() -> None:
    done = play(instance_of(), "keys")
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    swapped = replace(done.key_list.keys[1], mask_public=public)
    signed_by_another = replace(
        swapped, signature=sign_as("s02")(protocol.keys_statement(done.instance, swapped))
    )
    for name, keys in zip(("s00", "s02"), (swapped, signed_by_another), strict=True):
        everybody = (done.key_list.keys[0], keys, *done.key_list.keys[2:])
        lie = replace(done.key_list, keys=everybody)
        refuses(FORGED, "'s01' are not signed", lambda n=name, x=lie: done.sites[n].shares(x))
        # A refusal ends the instance: the right list comes too late.
        refuses(OUT_OF_STEP, "after ENDED", lambda n=name: done.sites[n].shares(done.key_list))


def test_keys_of_another_instance_are_refused() -> None:
    done, other = play(instance_of(), "keys"), play(instance_of(id_="two"), "keys")
    old = replace(done.key_list, keys=(done.key_list.keys[0], *other.key_list.keys[1:]))
    refuses(FORGED, "another instance", lambda: done.sites["s00"].shares(old))
    relabelled = tuple(replace(k, instance=done.instance.digest) for k in other.key_list.keys[1:])
    old = replace(done.key_list, keys=(done.key_list.keys[0], *relabelled))
    refuses(FORGED, "not signed", lambda: done.sites["s01"].shares(old))
    refuses(FORGED, "another instance", lambda: done.sites["s02"].shares(other.key_list))


def test_lists_of_keys_that_cannot_be_are_refused() -> None:
    done = play(instance_of(), "keys")
    one, two, three, four, five = done.key_list.keys
    stranger = replace(five, site="s99")
    stranger = replace(
        stranger, signature=sign_as("s99")(protocol.keys_statement(done.instance, stranger))
    )
    copied = replace(two, mask_public=three.mask_public)
    copied = replace(
        copied, signature=sign_as("s01")(protocol.keys_statement(done.instance, copied))
    )
    fresh = site_of(done.instance, "s03").keys()
    for name, code, words, keys in [
        ("s00", FORGED, "'s01' twice", (one, two, two, three, four)),
        ("s01", FORGED, "out of order", (two, one, three, four, five)),
        ("s02", FORGED, "'s99', who was not asked", (one, two, three, four, stranger)),
        ("s04", FORGED, "same public key", (one, copied, three, four, five)),
        ("s03", FORGED, "not those it sent", (one, two, three, fresh, five)),
    ]:
        lie = replace(done.key_list, keys=keys)
        refuses(code, words, lambda n=name, x=lie: done.sites[n].shares(x))
    done = play(instance_of(), "keys")
    few = replace(done.key_list, keys=done.key_list.keys[:3])
    refuses(TOO_FEW, "keys of 3 sites, 4", lambda: done.sites["s00"].shares(few))
    done = play(instance_of(), "keys")
    without_me = replace(done.key_list, keys=done.key_list.keys[1:])
    refuses(FORGED, "not those it sent", lambda: done.sites["s00"].shares(without_me))


@pytest.mark.parametrize("field", ["cipher_public", "mask_public"])
def test_a_key_that_agrees_on_nothing_is_refused(field: str) -> None:
    """A colluding site's point of low order would give a known mask."""
    done = play(instance_of(), "keys")
    bad = replace(done.key_list.keys[4], **{field: bytes(32)})
    bad = replace(bad, signature=sign_as("s04")(protocol.keys_statement(done.instance, bad)))
    lie = replace(done.key_list, keys=(*done.key_list.keys[:4], bad))
    if field == "cipher_public":
        refuses(FORGED, "no key .* with 's04'", lambda: done.sites["s00"].shares(lie))
    else:
        for name in done.instance.sites[:4]:
            done.sites[name].shares(lie)
        site = done.sites["s00"]
        # Its peers' shares are not needed to see it: give it honest ones, for this list.
        site._open = lambda _: site._held.update(dict.fromkeys(site._neighbours, (b"", b"")))
        inbox = Inbox(instance=done.instance.digest, sealed=())
        refuses(FORGED, "no mask .* 's04'", lambda: site.masked(inbox, np.zeros(4, np.uint32)))
    rejects("nobody can agree", lambda: CentreSum(done.instance, verify=verify).accept_keys(bad))


def test_a_site_takes_part_only_with_its_own_roster() -> None:
    instance = instance_of()
    fields = {"sign": sign_as("s00"), "verify": verify, "record": Records()}
    with pytest.raises(OrderRefusedError, match="'s04', whom this site's roster does not name"):
        SiteSum(instance, "s00", roster=instance.sites[:4], **fields)
    with pytest.raises(OrderRefusedError, match="not of 's77'"):
        SiteSum(instance, "s77", roster=instance.sites, **fields)


def test_phases_come_once_and_in_order() -> None:
    done = play(instance_of(), "shares")
    site = done.sites["s00"]
    assert done.inboxes is not None
    refuses(OUT_OF_STEP, "each comes once", site.keys)
    refuses(OUT_OF_STEP, "each comes once", lambda: site.shares(done.key_list))
    refuses(OUT_OF_STEP, "every pair", lambda: site.reveal(done.key_list))
    empty = AgreementList(instance=done.instance.digest, agreements=())
    refuses(OUT_OF_STEP, "each comes once", lambda: site.unmask(empty))
    site.masked(done.inboxes["s00"], np.zeros(4, np.uint32))
    again = np.ones(4, np.uint32)  # two vectors under one mask would give their difference
    refuses(OUT_OF_STEP, "once", lambda: site.masked(done.inboxes["s00"], again))


def test_too_few_holders_of_its_secrets_are_refused() -> None:
    sharing = replace(choose_sharing(5, max_colluders=1, max_dropouts=0), share_threshold=5)
    instance = instance_of(sharing=sharing)
    done = play(instance, "keys")
    enough_sites = replace(done.key_list, keys=done.key_list.keys[:4])
    refuses(TOO_FEW, "4 holders .* 5 needed", lambda: done.sites["s00"].shares(enough_sites))


# A server that changes the shares


def test_changed_shares_are_refused() -> None:
    done, other = play(instance_of(), "shares"), play(instance_of(id_="two"), "shares")
    assert done.inboxes is not None
    assert other.inboxes is not None
    vector = np.zeros(4, np.uint32)
    sealed = done.inboxes["s00"].sealed
    flipped = bytes([sealed[0][1][0] ^ 1]) + sealed[0][1][1:]
    for name, words, lie in [
        ("s00", "'s01' were changed", (("s01", flipped), *sealed[1:])),
        ("s01", "'s00' twice", (done.inboxes["s01"].sealed[0],) * 2),
        ("s02", "were changed", (("s00", sealed[0][1]), *done.inboxes["s02"].sealed[1:])),
        ("s03", "were changed", other.inboxes["s03"].sealed),
        ("s04", "'s04', no neighbour", (*done.inboxes["s04"].sealed[:3], ("s04", flipped))),
    ]:
        inbox = Inbox(instance=done.instance.digest, sealed=lie)
        refuses(FORGED, words, lambda n=name, x=inbox: done.sites[n].masked(x, vector))
    done = play(instance_of(), "shares")
    assert done.inboxes is not None
    few = replace(done.inboxes["s00"], sealed=done.inboxes["s00"].sealed[:2])
    refuses(TOO_FEW, "2 neighbours, 3", lambda: done.sites["s00"].masked(few, vector))
    old = other.inboxes["s01"]
    refuses(FORGED, "another instance", lambda: done.sites["s01"].masked(old, vector))


# A server that lies about who dropped out


def without(survivors: Survivors, *names: str) -> Survivors:
    kept = tuple(one for one in survivors.inclusions if one.site not in names)
    return replace(survivors, inclusions=kept)


def test_a_second_survivor_set_is_refused_also_after_it_signed() -> None:
    done = play(instance_of(), "masked")
    assert done.survivors is not None
    site = done.sites["s00"]
    signed = site.agree(done.survivors)
    assert signed.survivors_hash
    second = without(done.survivors, "s04")
    refuses(TWO_SETS, "two survivor sets", lambda: site.agree(second))
    done = play(instance_of(), "agree")
    assert done.survivors is not None
    assert done.signed is not None
    site = done.sites["s00"]
    site.unmask(done.signed)
    refuses(TWO_SETS, "two survivor sets", lambda: site.agree(without(done.survivors, "s04")))
    refuses(OUT_OF_STEP, "once", lambda: site.unmask(done.signed))


def test_the_record_forbids_a_second_set_over_a_restart() -> None:
    records = Records()
    play(instance_of(), "agree", records)
    assert set(records) == {"one"}
    again = play(instance_of(), "masked")  # fresh keys under the same name, so another hash
    assert again.survivors is not None
    site = again.sites["s00"]
    site._record = records  # what the site finds on its disk
    refuses(TWO_SETS, "on record", lambda: site.agree(again.survivors))


def test_nothing_is_signed_before_the_record_is_durable() -> None:
    done = play(instance_of(), "masked")
    assert done.survivors is not None

    def full_disk(*_: str) -> None:
        msg = "disk full"
        raise OSError(msg)

    site = done.sites["s00"]
    site._record = full_disk
    with pytest.raises(OSError, match="disk full"):
        site.agree(done.survivors)
    refuses(OUT_OF_STEP, "ENDED", lambda: site.agree(done.survivors))


def test_a_live_site_that_is_called_dropped_refuses() -> None:
    done = play(instance_of(), "masked")
    assert done.survivors is not None
    lie = without(done.survivors, "s02")
    refuses(FORGED, "'s02' is said to have dropped out", lambda: done.sites["s02"].agree(lie))


def test_survivor_sets_that_cannot_be_are_refused() -> None:
    done = play(instance_of(7), "masked")
    other = play(instance_of(7, id_="two"), "masked")
    assert done.survivors is not None
    assert other.survivors is not None
    one, *rest = done.survivors.inclusions
    stranger = replace(rest[-1], site="s99")
    unsigned = replace(rest[0], signature=b"no")
    changed = replace(rest[1], without=("s05",))
    mine = replace(rest[-1], without=("s01",))
    for name, code, words, lie in [
        ("s00", TOO_FEW, "4 survivors, 5", without(done.survivors, "s03", "s04", "s05")),
        ("s01", FORGED, "'s00' twice", replace(done.survivors, inclusions=(one, one, *rest))),
        ("s02", FORGED, "not asked", replace(done.survivors, inclusions=(one, *rest, stranger))),
        ("s03", FORGED, "'s01' is said to survive",
         replace(done.survivors, inclusions=(one, unsigned, *rest[1:]))),
        ("s04", FORGED, "'s02' is said to survive",
         replace(done.survivors, inclusions=(one, rest[0], changed, *rest[2:]))),
        ("s05", FORGED, "another instance", other.survivors),
        ("s06", FORGED, "another list of masks",
         replace(done.survivors, inclusions=(one, *rest[:-1], mine))),
    ]:  # fmt: skip
        refuses(code, words, lambda n=name, x=lie: done.sites[n].agree(x))


def test_a_site_kept_from_masking_with_a_live_peer_is_not_unmasked() -> None:
    """The server hides s05's shares from s00 alone, then shows both as survivors."""
    instance = instance_of(6)
    done = play(instance, "shares")
    assert done.inboxes is not None
    vector = np.zeros(4, np.uint32)
    hidden = tuple(pair for pair in done.inboxes["s00"].sealed if pair[0] != "s05")
    inboxes = done.inboxes | {"s00": replace(done.inboxes["s00"], sealed=hidden)}
    masked = {name: site.masked(inboxes[name], vector) for name, site in done.sites.items()}
    assert masked["s00"].inclusion.without == ("s05",)
    lie = Survivors(
        instance=instance.digest, inclusions=tuple(one.inclusion for one in masked.values())
    )
    for name in instance.sites:
        words = "'s05' is said to survive" if name == "s00" else "'s00' was kept from masking"
        refuses(FORGED, words, lambda n=name: done.sites[n].agree(lie))
    with pytest.raises(ReportRejectedError, match="left out masks"):
        done.centre.accept_masked(masked["s00"])


def test_too_few_or_forged_signatures_unmask_nothing() -> None:
    done = play(instance_of(), "agree")
    assert done.signed is not None
    one, two, *rest = done.signed.agreements
    other = replace(two, survivors_hash=hashlib.sha256(b"other").digest())
    other = replace(
        other, signature=sign_as("s01")(protocol.agreement_statement(done.instance, other))
    )
    for name, code, words, agreements in [
        ("s00", TOO_FEW, "signatures of 3 sites, 4", (one, two, rest[0])),
        ("s01", FORGED, "'s00' twice", (one, one, one, one)),
        ("s02", FORGED, "not signed by 's01'", (one, replace(two, signature=b""), *rest)),
        ("s03", TWO_SETS, "'s01' signed other", (one, other, *rest)),
    ]:
        lie = AgreementList(instance=done.instance.digest, agreements=agreements)
        refuses(code, words, lambda n=name, x=lie: done.sites[n].unmask(x))
        refuses(OUT_OF_STEP, "ENDED", lambda n=name: done.sites[n].unmask(done.signed))


def test_a_site_outside_the_set_neither_survives_nor_signs() -> None:
    """s04 works with the server: it has an identity, but sent no keys in time."""
    instance = instance_of()
    sites = {name: site_of(instance, name) for name in instance.sites}
    centre = CentreSum(instance, verify=verify)
    for name in instance.sites[:4]:
        centre.accept_keys(sites[name].keys())
    key_list = centre.close_keys()
    for name in instance.sites[:4]:
        centre.accept_shares(sites[name].shares(key_list))
    for name, inbox in centre.close_shares().items():
        centre.accept_masked(sites[name].masked(inbox, np.zeros(4, np.uint32)))
    survivors = centre.close_masked()
    *_, last = survivors.inclusions
    fifth = replace(last, site="s04")
    lie = replace(survivors, inclusions=(*survivors.inclusions, fifth))
    refuses(FORGED, "'s04' survives without keys", lambda: sites["s03"].agree(lie))
    signed = [sites[name].agree(survivors) for name in instance.sites[:3]]
    outside = replace(signed[0], site="s04")
    outside = replace(
        outside, signature=sign_as("s04")(protocol.agreement_statement(instance, outside))
    )
    four = AgreementList(instance=instance.digest, agreements=(*signed, outside))
    refuses(TWO_SETS, "'s04' signed other", lambda: sites["s00"].unmask(four))


def test_a_site_gives_one_kind_of_share_for_each_peer() -> None:
    instance = instance_of(6)
    done = play(instance, "shares")
    assert done.inboxes is not None
    vector = np.arange(4, dtype=np.uint32)
    alive = instance.sites[:4]
    for name in alive:
        done.centre.accept_masked(done.sites[name].masked(done.inboxes[name], vector))
    survivors = done.centre.close_masked()
    for name in alive:
        done.centre.accept_agreement(done.sites[name].agree(survivors))
    signed = done.centre.close_agreements()
    for name in alive:
        unmasking = done.sites[name].unmask(signed)
        assert [owner for owner, _ in unmasking.seed_shares] == list(alive)
        assert [owner for owner, _ in unmasking.key_shares] == ["s04", "s05"]
        done.centre.accept_unmasking(unmasking)
    assert done.centre.finish().tolist() == [0, 4, 8, 12]
    # s04 was only slow: its own mask protects a vector that comes now, and it unmasks nothing.
    done.sites["s04"].masked(done.inboxes["s04"], vector)
    refuses(FORGED, "'s04' is said to have dropped", lambda: done.sites["s04"].agree(survivors))


# The sparse graph


def test_the_ring_is_not_the_servers_choice() -> None:
    instance = instance_of(sharing=SPARSE)
    done = play(instance, "reveal")
    assert done.reveals is not None
    everybody = done.reveals.reveals
    wrong = replace(everybody[1], nonce=bytes(32))
    wrong = replace(
        wrong,
        signature=sign_as("s01")(
            protocol.reveal_statement(instance, protocol.keys_hash_of(
                instance, done.key_list.keys), wrong)
        ),
    )  # fmt: skip
    other_list = replace(everybody[1], signature=sign_as("s01")(
        protocol.reveal_statement(instance, bytes(32), everybody[1])))  # fmt: skip
    for name, words, reveals in [
        ("s00", "nonces of 11 sites, keys of 12", everybody[:-1]),
        ("s02", "'s01' is not the one", (everybody[0], wrong, *everybody[2:])),
        ("s03", "'s01' is not the one", (everybody[0], other_list, *everybody[2:])),
    ]:
        lie = replace(done.reveals, reveals=reveals)
        refuses(FORGED, words, lambda n=name, x=lie: done.sites[n].shares(x))
    refuses(OUT_OF_STEP, "other list", lambda: done.sites["s04"].shares(done.key_list))
    orders = {play(instance, "reveal").centre._ring for _ in range(4)}
    assert len(orders) == 4


def test_drop_outs_that_cut_the_ring_are_refused_by_site_and_centre() -> None:
    instance = instance_of(sharing=SPARSE)
    done = play(instance, "masked")
    assert done.survivors is not None
    ring = done.centre._ring
    cut = {ring[0], ring[1], ring[2]}  # of a run of 4 one survives, 2 must
    lie = without(done.survivors, *cut)
    assert len(lie.inclusions) >= SPARSE.min_survivors
    refuses(TOO_FEW, "along the ring", lambda: done.sites[ring[5]].agree(lie))
    done = play(instance, "shares")
    assert done.inboxes is not None
    ring = done.centre._ring
    for name in ring[3:]:
        done.centre.accept_masked(
            done.sites[name].masked(done.inboxes[name], np.zeros(4, np.uint32))
        )
    with pytest.raises(QuorumLostError, match="along the ring"):
        done.centre.close_masked()


def test_shares_go_to_neighbours_alone() -> None:
    done = play(instance_of(sharing=SPARSE), "shares")
    assert done.inboxes is not None
    for name, inbox in done.inboxes.items():
        peers = tuple(sender for sender, _ in inbox.sealed)
        assert peers == neighbours_of(done.centre._ring, name, SPARSE)
        assert len(peers) == 8

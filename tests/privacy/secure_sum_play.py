"""Secure sums with an honest server up to some phase, for tests of what comes then."""

import hmac
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from asterion_shared.errors import (
    OrderRefusedError,
    ReportRejectedError,
)
from asterion_shared.privacy.secure_sum import Instance
from asterion_shared.privacy.secure_sum_centre import CentreSum
from asterion_shared.privacy.secure_sum_graph import Sharing, choose_sharing
from asterion_shared.privacy.secure_sum_messages import (
    AgreementList,
    Inbox,
    KeyList,
    Masked,
    RevealList,
    Survivors,
)
from asterion_shared.privacy.secure_sum_site import SiteSum

FORGED, TOO_FEW = "secure_sum_forged", "secure_sum_too_few"
TWO_SETS, OUT_OF_STEP = "secure_sum_two_sets", "secure_sum_out_of_step"
SPARSE = Sharing(
    num_sites=12, max_colluders=1, max_dropouts=3, neighbours=8, share_threshold=6,
    min_survivors=8, window_survivors=2,
)  # fmt: skip


def instance_of(
    num_sites: int = 5, *, id_: str = "one", length: int = 4, bits: int = 32,
    sharing: Sharing | None = None,
) -> Instance:  # fmt: skip
    sharing = sharing or choose_sharing(num_sites, max_colluders=1, max_dropouts=0)
    return Instance(
        run="run", id=id_, round=3, sites=tuple(f"s{i:02}" for i in range(sharing.num_sites)),
        sharing=sharing, bits=bits, length=length, order_sha256="",
    )  # fmt: skip


def sign_as(site: str) -> Callable[[bytes], bytes]:
    return lambda message: hmac.digest(b"identity of " + site.encode(), message, "sha256")


def verify(site: str, message: bytes, signature: bytes) -> bool:
    return hmac.compare_digest(sign_as(site)(message), signature)


class Records(dict[str, str]):
    def __call__(self, instance: str, shown: str) -> None:
        if self.setdefault(instance, shown) != shown:
            msg = f"another set is on record for {instance}"
            raise OrderRefusedError(msg, code=TWO_SETS)


def site_of(instance: Instance, name: str, records: Records | None = None) -> SiteSum:
    return SiteSum(
        instance, name, roster=instance.sites, sign=sign_as(name), verify=verify,
        record=Records() if records is None else records,
    )  # fmt: skip


@dataclass
class Play:
    """An instance with an honest server, up to some phase."""

    instance: Instance
    sites: dict[str, SiteSum]
    centre: CentreSum
    key_list: KeyList
    reveals: RevealList | None = None
    inboxes: dict[str, Inbox] | None = None
    masked: dict[str, Masked] | None = None
    survivors: Survivors | None = None
    signed: AgreementList | None = None

    @property
    def peers(self) -> KeyList | RevealList:
        return self.reveals or self.key_list


def play(instance: Instance, until: str, records: Records | None = None) -> Play:
    """Until (and with) a phase: keys, reveal, shares, masked or agree."""
    sites = {name: site_of(instance, name, records) for name in instance.sites}
    centre = CentreSum(instance, verify=verify)
    for site in sites.values():
        centre.accept_keys(site.keys())
    done = Play(instance, sites, centre, centre.close_keys())
    if until == "keys":
        return done
    if not instance.sharing.complete:
        for site in sites.values():
            centre.accept_reveal(site.reveal(done.key_list))
        done.reveals = centre.close_reveals()
    if until == "reveal":
        return done
    for site in sites.values():
        centre.accept_shares(site.shares(done.peers))
    done.inboxes = centre.close_shares()
    if until == "shares":
        return done
    vector = np.ones(instance.length, np.uint32)
    done.masked = {name: site.masked(done.inboxes[name], vector) for name, site in sites.items()}
    for masked in done.masked.values():
        centre.accept_masked(masked)
    done.survivors = centre.close_masked()
    if until == "masked":
        return done
    for site in sites.values():
        centre.accept_agreement(site.agree(done.survivors))
    done.signed = centre.close_agreements()
    return done


def refuses(code: str, words: str, call: Callable[[], object]) -> None:
    with pytest.raises(OrderRefusedError, match=words) as caught:
        call()
    assert caught.value.code == code


def rejects(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(ReportRejectedError, match=words):
        call()

"""Any threshold of shares gives the secret; fewer, or wrong ones, do not."""

import secrets
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.privacy import shamir
from asterion_shared.privacy.shamir import PRIME, SHARE_BYTES, combine, share_number, split

SECRET = bytes(range(32))


def test_the_field_is_the_smallest_prime_above_every_secret() -> None:
    def is_probable_prime(number: int) -> bool:  # Miller and Rabin
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for _ in range(40):
            power = pow(secrets.randbelow(number - 3) + 2, odd, number)
            if power in (1, number - 1):
                continue
            for _ in range(twos - 1):
                power = power * power % number
                if power == number - 1:
                    break
            else:
                return False
        return True

    found = [n for n in range((1 << 256) + 1, PRIME + 1, 2) if is_probable_prime(n)]
    assert found == [PRIME]
    assert PRIME < 1 << (8 * SHARE_BYTES)


@given(
    secret=st.binary(min_size=32, max_size=32),
    points=st.lists(st.integers(1, 1 << 32), min_size=1, max_size=12, unique=True),
    data=st.data(),
)
def test_any_threshold_of_shares_gives_the_secret(
    secret: bytes, points: list[int], data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, len(points)))
    shares = split(secret, points, threshold)
    chosen = data.draw(st.permutations(points))
    for number in (threshold, len(points)):
        assert combine({point: shares[point] for point in chosen[:number]}) == secret


def test_shares_are_values_of_the_polynomial(monkeypatch: pytest.MonkeyPatch) -> None:
    # Above the constant term: 5, then 7.
    numbers = iter([5, 7])
    monkeypatch.setattr(shamir.secrets, "randbelow", lambda _: next(numbers))
    shares = split((11).to_bytes(32, "little"), [1, 2, 10], 3)
    values = [int.from_bytes(share, "little") for share in shares.values()]
    assert values == [11 + 5 + 7, 11 + 10 + 28, 11 + 50 + 700]


def test_one_share_fewer_gives_something_else() -> None:
    shares = split(SECRET, range(1, 6), 4)
    for few in combinations(shares, 3):
        try:
            assert combine({point: shares[point] for point in few}) != SECRET
        except ValueError:
            continue  # a number that is no secret, once in 2^247


def test_fewer_shares_go_with_every_secret() -> None:
    """Three shares of a threshold of four and any secret at 0 lie on one polynomial."""
    shares = split(SECRET, range(1, 6), 4)
    known = {point: share_number(shares[point]) for point in (1, 2, 3)}
    for secret in (0, 1, 1 << 255):
        values = known | {0: secret}
        fourth = 0
        for own, value in values.items():
            factor = 1
            for other in values:
                if other != own:
                    factor = factor * (4 - other) * pow(own - other, -1, PRIME) % PRIME
            fourth += value * factor
        made = {point: shares[point] for point in known}
        made[4] = (fourth % PRIME).to_bytes(SHARE_BYTES, "little")
        assert combine(made) == secret.to_bytes(32, "little")


def test_two_splits_share_nothing() -> None:
    one, other = split(SECRET, [1, 2, 3], 2), split(SECRET, [1, 2, 3], 2)
    assert not set(one.values()) & set(other.values())


@pytest.mark.parametrize(
    ("secret", "points", "threshold", "words"),
    [
        (b"short", [1, 2], 2, "5 bytes"),
        (SECRET, [1, 1], 2, "differ"),
        (SECRET, [0, 1], 2, "1 to 2"),
        (SECRET, [1, 2], 3, "threshold 3"),
        (SECRET, [1, 2], 0, "threshold 0"),
        (SECRET, [], 0, "0 points"),
    ],
)
def test_arguments_are_checked(
    secret: bytes, points: list[int], threshold: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        split(secret, points, threshold)


def test_a_share_outside_the_field_is_refused() -> None:
    for share in (PRIME.to_bytes(SHARE_BYTES, "little"), bytes(SHARE_BYTES - 1)):
        with pytest.raises(ValueError, match="outside the field"):
            share_number(share)
    with pytest.raises(ValueError, match="no secret"):  # the largest number of the field
        combine({1: (PRIME - 1).to_bytes(SHARE_BYTES, "little")})

"""Blinding against its library's own protocol, and what is refused."""

import hashlib
import hmac
import sys

import pytest

from fedquilt.core.errors import ConfigError, WireError
from fedquilt.vertical.alignment import psi
from fedquilt.vertical.alignment.blinding import BLINDINGS, keyed_hashes

IDS = [f"customer {number}" for number in range(40)]
P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
def openmined():
    return pytest.importorskip("private_set_intersection.python")


def test_who_blinds_first_makes_no_difference(openmined) -> None:
    a, b = psi.new_key(), psi.new_key()
    both = psi.blinded_again(b, psi.blinded(a, IDS))
    assert both == psi.blinded_again(a, psi.blinded(b, IDS))
    assert len(set(both)) == len(IDS)
    assert not set(both) & {*psi.blinded(a, IDS), *psi.blinded(b, IDS)}
    assert {len(one) for one in both} == {psi.POINT_BYTES} == {BLINDINGS["psi"].width}


def test_the_librarys_own_intersection_is_the_oracle(openmined) -> None:
    a, b = psi.new_key(), psi.new_key()
    mine, theirs = IDS[:30], IDS[20:]
    client = openmined.client.CreateFromKey(a, True)
    request = openmined.Request(reveal_intersection=True, encrypted_elements=psi.blinded(a, mine))
    response = openmined.Response(encrypted_elements=psi.blinded_again(b, psi.blinded(a, mine)))
    server = openmined.server.CreateFromKey(b, True)
    assert [*server.ProcessRequest(request).encrypted_elements] == [*response.encrypted_elements]
    setup = server.CreateSetupMessage(1e-9, len(mine), theirs, openmined.DataStructure.RAW)
    expected = sorted(client.GetIntersection(setup, response))
    both = set(psi.blinded_again(a, psi.blinded(b, theirs)))
    found = [row for row, one in enumerate(psi.blinded_again(b, psi.blinded(a, mine))) if one in both]
    assert found == expected == list(range(20, 30))


def test_keys_are_new_each_time_and_valid(openmined) -> None:
    keys = {psi.new_key() for _ in range(20)}
    assert len(keys) == 20
    assert all(0 < int.from_bytes(key, "big") < P256 for key in keys)


@pytest.mark.parametrize("content", [b"", b"\x02" + b"\xff" * 32, b"\x00" * 33, b"\x05" * 33])
def test_what_is_no_point_is_refused(openmined, content) -> None:
    with pytest.raises(WireError, match="no point of the curve"):
        psi.blinded_again(psi.new_key(), [*psi.blinded(psi.new_key(), IDS[:2]), content])


def test_a_missing_library_names_the_extra_and_the_other_way(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "private_set_intersection", None)
    monkeypatch.setitem(sys.modules, "private_set_intersection.python", None)
    with pytest.raises(ConfigError, match=r"partition\.alignment = 'keyed-hash'.*pip install .*\[psi\]"):
        psi.new_key()


def test_keyed_hashes_are_hmac_sha256() -> None:
    # RFC 4231, test case 2
    expected = bytes.fromhex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    assert keyed_hashes(b"Jefe", ["what do ya want for nothing?"]) == [expected]
    assert keyed_hashes(b"k" * 32, ["é"]) == [hmac.new(b"k" * 32, "é".encode(), hashlib.sha256).digest()]


@pytest.mark.parametrize("key", [b"", b"k" * 31])
def test_a_hash_without_a_proper_key_is_refused(key) -> None:
    with pytest.raises(ConfigError, match=r"partition\.key_file"):
        BLINDINGS["keyed-hash"].key(key)

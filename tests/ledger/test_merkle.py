"""The tree is RFC 6962's: its roots and proofs are those of the definition, at any size, and nothing else passes."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.merkle import BLOCK_LEAVES, EMPTY_ROOT, Subtrees, Tree, leaf_hash
from ledger.verifier import Failed, root_from_path, roots_from_consistency

# The leaves and roots of the tests of Certificate Transparency, which RFC 6962 is for.
CT_LEAVES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

sizes = st.integers(1, 3 * BLOCK_LEAVES + 5)


def data(size):
    """What leaves are made of: record hashes."""
    return [sha256(b"%d" % number).digest() for number in range(size)]


def naive_root(leaves):
    """MTH of RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m, leaves):
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m, leaves, *, is_whole):
    """SUBPROOF of section 2.1.2."""
    if m == len(leaves):
        return [] if is_whole else [naive_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], is_whole=is_whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], is_whole=False), naive_root(leaves[:k])]


def subtrees(leaves):
    """The source of proofs over these leaves, given by blocks as the notary keeps them."""
    blocks = Tree().extend(leaves)

    def leaves_of(number):
        return [leaf_hash(each) for each in leaves[number * BLOCK_LEAVES : (number + 1) * BLOCK_LEAVES]]

    return Subtrees(lambda first, last: blocks[first:last], leaves_of)


def test_the_empty_tree_has_the_hash_of_nothing():
    assert Tree().root() == EMPTY_ROOT == bytes.fromhex(NOTHING)
    assert Tree().size == 0


def test_roots_are_those_of_certificate_transparency():
    tree = Tree()
    found = []
    for leaf in CT_LEAVES:
        tree.extend([leaf])
        found.append(tree.root().hex())
    assert found == CT_ROOTS


@given(st.lists(st.integers(0, 2 * BLOCK_LEAVES), max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_tree_that_grows_by_any_steps_has_the_root_of_the_definition(steps):
    tree, leaves, blocks = Tree(), data(sum(steps)), []
    at = 0
    for step in steps:
        blocks += tree.extend(leaves[at : at + step])
        at += step
        assert tree.size == at
        assert tree.root() == naive_root(leaves[:at])
    whole = at - at % BLOCK_LEAVES
    assert blocks == [naive_root(leaves[each : each + BLOCK_LEAVES]) for each in range(0, whole, BLOCK_LEAVES)]
    again = Tree(blocks)
    again.extend(leaves[whole:])
    assert again.root() == tree.root()


@given(sizes, st.data())
@settings(max_examples=100, deadline=None)
def test_an_audit_path_is_that_of_the_definition_and_leads_to_the_root(size, draw):
    leaves = data(size)
    index = draw.draw(st.integers(0, size - 1))
    path = subtrees(leaves).inclusion(index, size)
    assert path == naive_path(index, leaves)
    assert root_from_path(leaf_hash(leaves[index]), index, size, path) == naive_root(leaves)


@given(sizes, st.data())
@settings(max_examples=100, deadline=None)
def test_a_consistency_proof_is_that_of_the_definition_and_leads_to_both_roots(size, draw):
    leaves = data(size)
    old = draw.draw(st.integers(1, size))
    path = subtrees(leaves).consistency(old, size)
    assert path == naive_subproof(old, leaves, is_whole=True)
    roots = naive_root(leaves[:old]), naive_root(leaves)
    assert roots_from_consistency(old, size, roots[0], path) == roots


def test_every_small_tree_proves_every_leaf_and_every_beginning():
    for size in range(1, 34):
        leaves = data(size)
        root, proofs = naive_root(leaves), subtrees(leaves)
        for index in range(size):
            assert root_from_path(leaf_hash(leaves[index]), index, size, proofs.inclusion(index, size)) == root
        for old in range(1, size + 1):
            roots = naive_root(leaves[:old]), root
            assert roots_from_consistency(old, size, roots[0], proofs.consistency(old, size)) == roots


@given(sizes, st.data())
@settings(max_examples=100, deadline=None)
def test_a_path_for_another_leaf_size_or_hash_leads_elsewhere(size, draw):
    leaves = data(size)
    index = draw.draw(st.integers(0, size - 1))
    other = draw.draw(st.integers(0, size).filter(lambda each: each != index))
    path = subtrees(leaves).inclusion(index, size)
    root, leaf = naive_root(leaves), leaf_hash(leaves[index])
    wrong = [(leaf_hash(b"other"), index, size, path), (leaf, index, size, [*path, leaf]), (leaf, other, size, path)]
    wrong += [(leaf, index, size, path[:-1])] if path else []
    wrong += [(leaf, index, size, [*path[:each], leaf, *path[each + 1 :]]) for each in range(len(path))]
    for attempt in wrong:
        try:
            assert root_from_path(*attempt) != root
        except Failed as failed:
            assert "audit path" in str(failed)  # noqa: PT017 either way it is not accepted


@given(sizes, st.data())
@settings(max_examples=100, deadline=None)
def test_a_tree_that_does_not_begin_with_the_old_one_has_no_proof(size, draw):
    leaves = data(size)
    old = draw.draw(st.integers(1, size))
    changed = draw.draw(st.integers(0, old - 1))
    rewritten = [*leaves[:changed], b"rewritten", *leaves[changed + 1 :]]
    path = subtrees(rewritten).consistency(old, size)
    signed = naive_root(leaves[:old]), naive_root(rewritten)
    assert roots_from_consistency(old, size, signed[0], path) != signed
    for attempt in ([*path, bytes(32)], path[:-1]):
        try:
            assert attempt == path or roots_from_consistency(old, size, naive_root(leaves[:old]), attempt) != (
                naive_root(leaves[:old]),
                naive_root(leaves),
            )
        except Failed as failed:
            assert "consistency proof" in str(failed)  # noqa: PT017 either way it is not accepted


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_what_is_not_in_the_tree_has_no_path(index, size):
    with pytest.raises(ValueError, match="has no leaf"):
        subtrees(data(5)).inclusion(index, size)


@pytest.mark.parametrize(("old", "new"), [(0, 5), (6, 5), (-1, 5)])
def test_a_larger_tree_does_not_begin_a_smaller_one(old, new):
    with pytest.raises(ValueError, match="no consistency proof"):
        subtrees(data(5)).consistency(old, new)
    with pytest.raises(Failed, match="does not grow"):
        roots_from_consistency(old, new, bytes(32), [])

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from likelier.logprobs.tree import PromptResponse, Tree, build_tree, common_prefix, count_unique_tokens

some_ids = st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple)  # three tokens only: prefixes meet all the time
sequence = st.builds(PromptResponse, some_ids, some_ids)
extended = st.lists(st.builds(lambda s, more: [s, PromptResponse(s.prompt_ids, s.response_ids + more), s], sequence, some_ids), max_size=3)
batches = st.builds(
    lambda singles, families: [*singles, *(s for family in families for s in family)], st.lists(sequence, min_size=1, max_size=9), extended
)


def path_to(tree: Tree, row: int) -> list[int]:
    """Rows from the root to `row`, by the nodes alone."""
    node = next(n for n in tree.nodes if n.start <= row < n.stop)
    rows = [r for a in node.ancestors for r in range(tree.nodes[a].start, tree.nodes[a].stop)]
    return [*rows, *range(node.start, row + 1)]


def edges_of(tree):
    """The edges that score the tokens of each sequence."""
    return tree.by_sequence(torch.arange(len(tree.targets_E)))


def prefixes(sequences):
    """Every distinct prefix: what a causal model computes separately, by definition."""
    whole = [s.prompt_ids + s.response_ids for s in sequences]
    return {ids[:stop] for ids in whole for stop in range(1, len(ids) + 1)}


@given(batches)
@settings(max_examples=100, deadline=None)
def test_every_edge_reads_its_token_after_its_own_sequence(sequences):
    tree = build_tree(sequences)
    for (prompt_ids, response_ids), edges in zip(sequences, edges_of(tree), strict=True):
        assert tree.targets_E[edges].tolist() == list(response_ids)
        for step, source in enumerate(tree.sources_E[edges].tolist()):
            walked = path_to(tree, source)
            assert tuple(tree.tokens_T[walked].tolist()) == prompt_ids + response_ids[:step]
            assert tree.positions_T[walked].tolist() == list(range(len(walked)))


@given(batches)
@settings(max_examples=100, deadline=None)
def test_every_hidden_state_is_computed_once_and_every_edge_scored_once(sequences):
    tree = build_tree(sequences)
    whole = [s.prompt_ids + s.response_ids for s in sequences]
    followed = {ids[:stop] for ids in whole for stop in range(1, len(ids))}
    scored = {(p + r)[:stop] for p, r in sequences for stop in range(len(p) + 1, len(p + r) + 1)}

    rows = [tuple(tree.tokens_T[path_to(tree, row)].tolist()) for row in range(len(tree))]
    assert sorted(rows) == sorted(followed)
    ends = [(*rows[source], target) for source, target in zip(tree.sources_E.tolist(), tree.targets_E.tolist(), strict=True)]
    assert sorted(ends) == sorted(scored)

    leaves = prefixes(sequences) - followed
    assert count_unique_tokens(sequences) == len(prefixes(sequences)) == len(tree) + len(leaves)


@given(batches)
@settings(max_examples=100, deadline=None)
def test_nodes_are_maximal_runs_in_which_parents_come_first(sequences):
    tree = build_tree(sequences)
    assert [n.start for n in tree.nodes] == [0, *(n.stop for n in tree.nodes)][:-1]
    assert tree.nodes[-1].stop == len(tree)
    children: dict[int, int] = {}
    for index, node in enumerate(tree.nodes):
        assert node.start < node.stop
        assert list(node.ancestors) == sorted(node.ancestors)
        assert all(ancestor < index for ancestor in node.ancestors)
        assert node.depth == sum(tree.nodes[a].stop - tree.nodes[a].start for a in node.ancestors)
        if node.ancestors:
            children[node.ancestors[-1]] = children.get(node.ancestors[-1], 0) + 1
    assert 1 not in children.values()


def test_pitfall_6_first_tokens_leave_the_same_hidden_state():
    tree = build_tree([PromptResponse((5, 6, 7), (1, 2)), PromptResponse((5, 6, 7), (3,))])
    assert tree.tokens_T.tolist() == [5, 6, 7, 1]  # 2 and 3 are only ever targets
    firsts = [int(edges[0]) for edges in edges_of(tree)]
    assert tree.sources_E[firsts].tolist() == [2, 2]
    assert tree.targets_E[firsts].tolist() == [1, 3]


def test_equal_sequences_are_scored_once():
    one = PromptResponse((1, 2), (3, 4, 5))
    tree = build_tree([one, PromptResponse((1, 2), (6,)), one, one])
    assert len(tree.targets_E) == 4
    assert edges_of(tree)[0].equal(edges_of(tree)[2])
    assert edges_of(tree)[0].equal(edges_of(tree)[3])


def test_one_response_in_several_pairs_is_scored_once():
    prompt, best, worse, worst = (1, 2, 3), (4, 5), (6, 7, 8), (9,)
    pairs = [(best, worse), (best, worst), (worse, worst)]
    tree = build_tree([PromptResponse(prompt, response) for pair in pairs for response in pair])
    assert len(tree.targets_E) == len(best) + len(worse) + len(worst)
    assert len(tree) == len(prompt) + len(best) - 1 + len(worse) - 1


def test_a_response_that_is_the_beginning_of_another():
    longer, shorter = PromptResponse((1,), (2, 3, 4)), PromptResponse((1,), (2, 3))
    tree = build_tree([longer, shorter])
    assert tree.tokens_T.tolist() == [1, 2, 3]
    assert edges_of(tree)[0][:2].equal(edges_of(tree)[1])
    assert len(tree.nodes) == 1


def test_equal_tokens_under_another_boundary_share_their_edges():
    tree = build_tree([PromptResponse((1, 2), (3,)), PromptResponse((1,), (2, 3))])
    assert tree.tokens_T.tolist() == [1, 2]
    assert tree.targets_E.tolist() == [2, 3]
    assert [edges.tolist() for edges in edges_of(tree)] == [[1], [0, 1]]


def test_order_of_the_sequences_changes_nothing():
    sequences = [PromptResponse((1, n % 3), (n, 2, n % 2)) for n in range(7)]
    forwards, backwards = build_tree(sequences), build_tree(sequences[::-1])
    assert forwards.tokens_T.equal(backwards.tokens_T)
    assert forwards.nodes == backwards.nodes
    assert all(a.equal(b) for a, b in zip(edges_of(forwards), edges_of(backwards)[::-1], strict=True))


@pytest.mark.parametrize("empty", [PromptResponse((), (1,)), PromptResponse((1,), ()), PromptResponse((), ())])
def test_empty_prompts_and_responses_are_refused(empty):
    with pytest.raises(ValueError, match="at least one prompt token and one response token"):
        build_tree([PromptResponse((1,), (2,)), empty])


def test_moving_a_tree_moves_all_its_tensors():
    tree = build_tree([PromptResponse((1, 2), (3, 4))])
    assert tree.to(torch.device("cpu")) is tree
    moved = tree.to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@given(some_ids, some_ids)
def test_common_prefix(a, b):
    shared = common_prefix(a, b)
    assert a[:shared] == b[:shared]
    assert shared == min(len(a), len(b)) or a[shared] != b[shared]

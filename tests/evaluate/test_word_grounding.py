"""Whether words point to what they speak of: known answers."""

import os
import sys

import pytest
import torch

from lightning_xai.evaluate.word_grounding import (
    WordGrounding,
    grounding_counts,
    grounding_numbers,
    random_relevance,
    same_object,
)

# "a red star above a heart": nodes star, red, heart, above, and one of padding
TYPES = torch.tensor([[0, 1, 0, 2, 0]])
MASK = torch.tensor([[True, True, True, True, False]])
SPOKEN = torch.tensor([[0, 1, 0, 3, 2, 2, -1]])  # the last ends the sentence


def looking_at(nodes) -> torch.Tensor:
    """(1, T, 5): all relevance on one node a word."""
    return torch.nn.functional.one_hot(torch.tensor([nodes]), 5).float()


def numbers(relevance) -> dict:
    return grounding_numbers(grounding_counts(relevance, SPOKEN, TYPES, MASK))


def test_a_captioner_that_tells_the_truth():
    found = numbers(looking_at([0, 1, 0, 3, 2, 2, 0]))
    assert found == {"words": 6, "node": 1, "object": 1, "objects": 1, "attributes": 1, "relations": 1}


def test_right_object_but_not_node():
    # "a" at red, "red" at its star, "star" at itself, "above" at one of its ends, "a" at star, "heart" at itself
    found = numbers(looking_at([1, 0, 0, 2, 0, 2, 0]))
    assert found == {"words": 6, "node": 2 / 6, "object": 4 / 6, "objects": 2 / 4, "attributes": 0, "relations": 0}


def test_padding_is_never_chosen_and_signs_count():
    relevance = -looking_at([1, 0, 1, 0, 0, 0, 0]) - 1
    relevance[..., 2:4] = -3
    relevance[..., 4] = 9
    found = numbers(relevance)  # the better of the first two nodes
    assert found["node"] == 3 / 6 and found["object"] == 3 / 6


def test_what_prefers_nothing_scores_what_chance_does():
    found = numbers(torch.zeros(1, 7, 5))
    assert found["node"] == pytest.approx(1 / 4)
    assert found["object"] == pytest.approx((3 * 2 / 4 + 1 / 4 + 2 * 1 / 4) / 6)
    grounding = WordGrounding()
    grounding.add_chance(SPOKEN, TYPES, MASK)
    assert grounding.table()["chance"] == pytest.approx(found)
    two_best = looking_at([0] * 7) + looking_at([1] * 7)
    assert numbers(two_best)["objects"] == pytest.approx((0.5 + 0.5) / 4)


def test_numbers_are_those_of_counting_one_by_one():
    draws = torch.Generator().manual_seed(0)
    types = torch.tensor([[0, 1, 0, 0, 2, 2], [0, 1, 1, 2, 0, 0]])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    owners = [[0, 0, 2, 3, 4, 5], [0, 0, 0, 3]]
    relevance = torch.randint(0, 3, (2, 4000, 6), generator=draws)  # many are equally relevant
    spoken = torch.randint(-1, 4, (2, 4000), generator=draws)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for sample, of_node in enumerate(owners):
        for word, node in enumerate(spoken[sample].tolist()):
            scores = relevance[sample, word, : len(of_node)].tolist()
            best = [place for place, score in enumerate(scores) if score == max(scores)]
            if node >= 0:
                related = sum(of_node[place] == of_node[node] for place in best)
                counts = [1, (node in best) / len(best), related / len(best)]
                expected[types[sample, node]] += torch.tensor(counts, dtype=torch.float64)
    found = grounding_counts(relevance, spoken, types, mask)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_which_nodes_are_of_one_object():
    expected = torch.tensor(
        [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool
    )
    assert torch.equal(same_object(TYPES, MASK)[0], expected)


def test_random_numbers_depend_on_sample_word_and_node_alone():
    whole = random_relevance(torch.tensor([3, 7, 1000]), 6, 10)
    assert torch.equal(whole[1:2, :4, :5], random_relevance(torch.tensor([7]), 4, 5))
    assert len(whole.unique()) == whole.numel()
    many = random_relevance(torch.arange(3000), 4, 5)
    shares = torch.nn.functional.one_hot(many.argmax(2), 5).double().mean((0, 1))
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.015)  # four standard errors of 12000 draws
    together = (many[:, 0].argmax(1) == many[:, 1].argmax(1)).double().mean()
    assert float(together) == pytest.approx(0.2, abs=0.03)


def test_batches_add_up_and_nothing_known_is_no_table():
    right, wrong = looking_at([0, 1, 0, 3, 2, 2, 0]), looking_at([3, 3, 3, 0, 3, 3, 3])
    grounding = WordGrounding()
    grounding.add("attention", right, SPOKEN, TYPES, MASK)
    grounding.add("attention", wrong, SPOKEN, TYPES, MASK)
    assert grounding.table()["attention"] == {
        "words": 12, "node": 0.5, "object": 0.5, "objects": 0.5, "attributes": 0.5, "relations": 0.5,
    }  # fmt: skip
    nothing = WordGrounding()
    nothing.add("attention", right, torch.full_like(SPOKEN, -1), TYPES, MASK)
    assert nothing.table() == {} == WordGrounding().table()


def process(rank: int, folder: str) -> None:
    """One of two processes; only the first has seen a batch of the second method."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    grounding = WordGrounding()
    nodes = [0, 1, 0, 3, 2, 2, 0] if rank else [3, 3, 3, 0, 3, 3, 3]
    grounding.add("attention", looking_at(nodes), SPOKEN, TYPES, MASK)
    if rank == 0:
        grounding.add("occlusion", looking_at(nodes), SPOKEN, TYPES, MASK)
    table = grounding.table()
    assert table["attention"]["words"] == 12 and table["attention"]["node"] == 0.5
    assert table["occlusion"]["words"] == 6 and table["occlusion"]["node"] == 0
    torch.distributed.destroy_process_group()


def test_two_processes(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)


if __name__ == "__main__":
    process(int(os.environ["RANK"]), sys.argv[1])

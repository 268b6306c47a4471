"""Loading: rows across shards, an order that can be resumed and shared, three ways of loading the same batches."""

import itertools
import json

import numpy as np
import pytest
import torch
from refusals import refusal

from picollm.data.feeding import Feed
from picollm.data.loading import Order, Rows

CPU = torch.device("cpu")


def take(order, count):
    return [numbers.tolist() for numbers in itertools.islice(order, count)]


def epochs(n_rows, batch_rows, seed, count):
    """Returns the first `count` epochs as lists of row numbers."""
    steps = n_rows // batch_rows
    taken = take(Order(n_rows, batch_rows, seed), count * steps)
    assert all(len(batch) == batch_rows for batch in taken)
    return [sum(taken[e * steps : (e + 1) * steps], []) for e in range(count)]


@pytest.mark.parametrize(("n_rows", "batch_rows"), [(24, 4), (26, 4), (5, 5), (7, 1)])
def test_each_epoch_is_another_permutation(n_rows, batch_rows):
    found = epochs(n_rows, batch_rows, 1, 3)
    for epoch in found:
        assert len(set(epoch)) == len(epoch) == n_rows // batch_rows * batch_rows
    assert found[0] != found[1] != found[2]


def test_the_order_is_the_seeds():
    assert epochs(24, 4, 1, 2) == epochs(24, 4, 1, 2)
    assert epochs(24, 4, 1, 2) != epochs(24, 4, 2, 2)
    assert epochs(24, 4, 1, 2)[1] != epochs(24, 4, 2, 1)[0], "epochs of one seed are not the next seed's"


def test_fewer_rows_than_a_batch_are_refused():
    text = refusal(lambda: Order(3, 4, 1))
    assert "3 rows" in text and "pretrain.batch_rows = 4:" in text
    assert "pretrain.batch_rows = 8:" in refusal(lambda: Order(7, 4, 1, ranks=2))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_each_step_of_one_order(ranks):
    alone = take(Order(40, 2 * ranks, 7), 30)
    parts = [take(Order(40, 2, 7, rank, ranks), 30) for rank in range(ranks)]
    assert [sum(step, []) for step in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize("after", [0, 1, 5, 6, 7, 13, 40])
def test_a_resumed_order_goes_on_exactly(after):
    whole = take(Order(25, 4, 3), 60)
    order = Order(25, 4, 3)
    take(order, after)
    state = json.loads(json.dumps(order.state_dict()))
    resumed = Order(25, 4, 3)
    resumed.load_state_dict(state)
    assert take(resumed, 60 - after) == whole[after:]


@pytest.mark.parametrize("other", [Order(26, 4, 3), Order(25, 5, 3), Order(25, 4, 4)])
def test_the_state_of_another_order_is_refused(other):
    text = refusal(lambda: Order(25, 4, 3).load_state_dict(other.state_dict()))
    assert "of another order" in text and "not" in text


def test_two_ranks_resume_what_one_process_began():
    order = Order(40, 4, 7)
    begun = take(order, 13)
    ranks = [Order(40, 2, 7, rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(order.state_dict())
    found = [sum(step, []) for step in zip(*(take(rank, 9) for rank in ranks), strict=True)]
    assert begun + found == take(Order(40, 4, 7), 22)


@pytest.fixture(scope="module", params=[[50], [20, 20, 10], [1] * 50], ids=["one shard", "three", "fifty"])
def rows(request):
    flat = np.random.default_rng(0).integers(0, 2**16, (50, 9), dtype=np.uint16)
    flat[0, 0], flat[1, 1] = 50256, 65535  # above the maximum of int16
    return flat, Rows(np.split(flat, np.cumsum(request.param)[:-1]))


@pytest.mark.parametrize("wanted", [[0], [49, 0, 20, 19, 20], [3, 3, 3], []])
def test_rows_are_picked_across_shards(rows, wanted):
    flat, found = rows
    assert (len(found), found.width) == flat.shape
    assert (
        np.array_equal(found[np.array(wanted, int)], flat[wanted]) and found[np.array(wanted, int)].dtype == np.uint16
    )
    assert np.array_equal(np.asarray(found), flat)


@pytest.mark.parametrize("part", [slice(None), slice(3, 30), slice(-5, None), slice(10), slice(0, 0), slice(0, 50, 7)])
def test_slices_of_rows(rows, part):
    flat, found = rows
    assert np.array_equal(found[part], flat[part])


@pytest.mark.parametrize("way", ["gather", "workers", "resident"])
def test_every_way_gives_the_same_batches_in_the_same_order(rows, way):
    flat, found = rows
    feed = Feed(found, Order(50, 8, 5), CPU, way)
    batches = list(itertools.islice(feed, 15))  # into the third epoch
    assert all(batch.dtype == torch.int64 for batch in batches)
    assert [batch.tolist() for batch in batches] == [flat[numbers].tolist() for numbers in take(Order(50, 8, 5), 15)]


@pytest.mark.parametrize("way", ["gather", "workers", "resident"])
@pytest.mark.parametrize("after", [0, 1, 6, 9])
def test_the_state_counts_what_was_taken_and_not_what_was_read_ahead(rows, way, after):
    flat, found = rows
    stream = iter(feed := Feed(found, Order(50, 8, 5), CPU, way))
    for _ in range(after):
        next(stream)
    resumed = Feed(found, Order(50, 8, 5), CPU, "gather")
    resumed.load_state_dict(json.loads(json.dumps(feed.state_dict())))
    assert next(iter(resumed)).tolist() == next(stream).tolist()


def test_no_way_touches_the_seed_of_training(rows):
    _, found = rows
    drawn = []
    for way in ("gather", "workers", "resident"):
        torch.manual_seed(3)
        list(itertools.islice(Feed(found, Order(50, 8, 5), CPU, way), 3))
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] == drawn[2]

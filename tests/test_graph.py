"""The engine: order, accumulation, freeing, double backward, detection of in-place writes."""

import copy as copying
import gc
from threading import Event, Thread

import numpy as np
import pytest

import minidl
from minidl import Function, Tensor, grad, is_grad_enabled, no_grad, ops
from minidl.nn import Parameter
from minidl.ops.elementwise import ReLU


def leaf(values):
    return Tensor(np.array(values, dtype=np.float64), requires_grad=True)


def test_shared_subgraph_accumulates():
    x = leaf([2.0, 3.0])
    y = x * x
    (y + y * x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.data + 3 * x.data**2)


def test_gradients_accumulate_over_backwards():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    (x * 4).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [7, 7])


def test_two_leaves_do_not_share_a_gradient_array():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x + y).backward(np.ones(2))
    with x.grad.mutate() as array:
        array *= 10
    np.testing.assert_array_equal(y.grad.numpy(), [1, 1])


def test_a_chain_of_fifty_thousand_operations():
    x = leaf([1.0])
    y = x
    for _ in range(50_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.item() == 1.0
    unused = x
    for _ in range(50_000):
        unused = unused * 1.0
    del unused  # a graph that is never walked must be freed without recursion too
    gc.collect()


def test_second_backward_raises_unless_retained():
    x = leaf([1.0, 2.0])
    loss = (x * x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 4 * x.data)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_third_derivative():
    x = leaf([0.5, -1.5])
    y = x**4
    for order in (4 * x.data**3, 12 * x.data**2, 24 * x.data):
        (y,) = grad(y.sum(), x, create_graph=True)
        np.testing.assert_allclose(y.detach().numpy(), order)


def test_grad_leaves_grad_untouched_and_reaches_inner_tensors():
    x = leaf([1.0, 2.0])
    inner = x * 3
    (g,) = grad((inner * inner).sum(), inner)
    np.testing.assert_array_equal(g.numpy(), 2 * inner.detach().numpy())
    assert x.grad is None


def test_unused_input():
    x, y = leaf([1.0]), leaf([1.0])
    with pytest.raises(RuntimeError, match=r"inputs\[1\].*allow_unused"):
        grad(x * 2, [x, y], retain_graph=True)
    assert grad(x * 2, [x, y], allow_unused=True)[1] is None


def test_tracked_write_is_detected():
    x = leaf([1.0, 2.0])
    y = x * x
    with x.mutate() as array:
        array += 1
    with pytest.raises(RuntimeError, match="Mul: input 0.*modified in place"):
        y.sum().backward()


def test_write_to_an_output_that_backward_reads_is_detected():
    x = leaf([1.0, 2.0])
    y = x.exp()
    with y.mutate() as array:
        array += 1
    with pytest.raises(RuntimeError, match="Exp: output 0.*modified in place"):
        y.sum().backward()


def test_write_through_a_view_is_detected():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    row = x.detach()[0]
    y = x * x
    with row.mutate() as array:
        array += 1
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()


def test_untracked_writes_raise_while_the_graph_lives_and_work_after():
    source = np.array([1.0, 2.0])
    x = Tensor(source, requires_grad=True)
    handed_out = x.data
    y = x * x
    for array in (source, handed_out, x.data, x.detach().numpy()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    y.sum().backward()
    for array in (source, handed_out):
        array[0] = 5
    assert x.data[0] == 5


def test_a_dropped_graph_lifts_its_locks():
    x = leaf([1.0])
    y = x * x
    del y
    gc.collect()
    x.data[0] = 3


def test_assigning_data_is_detected():
    x = leaf([1.0, 2.0])
    y = x * x
    x.data = np.array([5.0, 6.0])
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()


def test_no_grad_records_nothing():
    x = leaf([1.0])
    with no_grad():
        y = x * 2
    assert not y.requires_grad
    with pytest.raises(RuntimeError, match="requires grad"):
        y.backward()


def test_backward_needs_a_gradient_for_many_elements():
    x = leaf([1.0, 2.0])
    with pytest.raises(RuntimeError, match="grad must be given"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        (x * 2).backward(np.ones(3))


def test_retain_grad():
    x = leaf([1.0, 2.0])
    y = (x * 3).retain_grad()
    (y * y).sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), 2 * y.detach().numpy())


def test_wrong_gradient_shape_from_a_user_function_is_named():
    class Bad(Function):
        def forward(self, x):
            return x.sum()

        def backward(self, grad):
            return grad

    with pytest.raises(RuntimeError, match=r"Bad.backward.*shape \(2,\), got \(\)"):
        Bad()(leaf([1.0, 2.0])).backward()


def test_float32_stays_float32():
    x = Tensor([1.0, 2.0], requires_grad=True)
    assert x.dtype == np.float32
    y = ((x * 0.5 + 1) ** 2.0 / 3).mean()
    y.backward()
    assert y.dtype == x.grad.dtype == np.float32


def test_random_state_round_trip():
    minidl.manual_seed(7)
    minidl.random.next_dropout_step()
    state = minidl.random.get_state()
    first = minidl.random.generator().random(3), minidl.random.next_dropout_step()
    minidl.random.set_state(state)
    second = minidl.random.generator().random(3), minidl.random.next_dropout_step()
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1] == (7, 1)


class Foreign:
    """Memory that NumPy cannot vouch for: an array interface without the buffer protocol."""

    def __init__(self, array):
        self._array = array
        self.__array_interface__ = array.__array_interface__


def test_foreign_memory_stays_writable_after_the_graph():
    array = np.asarray(Foreign(np.ones(3)))
    x = Tensor(array, requires_grad=True)
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 2, 2])
    array[0] = 5
    view = np.ones(6)[::2]  # ordinary views are guarded, and released again
    t = Tensor(view, requires_grad=True)
    y = (t * t).sum()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2
    y.backward()
    view[0] = 2


def test_tensors_on_one_array_share_their_guards():
    array = np.ones(3)
    x, y = (Tensor(array, requires_grad=True) for _ in range(2))
    squares = [(t * t).sum() for t in (x, y)]
    squares[0].backward()
    with pytest.raises(ValueError, match="read-only"):
        array += 1  # the other graph still needs it
    squares[1].backward()
    array += 1
    alias = Tensor(x.data)
    loss = (x * x).sum()
    alias.copy_(5.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_assigning_the_array_of_another_tensor_is_detected():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    loss = (x * x).sum()
    x.data = y.data
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()
    loss = (x * x).sum()
    y.copy_(0.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_handing_out_arrays_keeps_nothing_alive():
    x = leaf([1.0, 2.0])
    for _ in range(100):
        x.detach().numpy()
    assert len(x._storage.exposed) <= 1


def test_a_retained_gradient_is_not_shared():
    x = leaf([1.0, 2.0])
    y = (x + 0.0).retain_grad()
    weights = Tensor(np.array([2.0, 3.0]))
    y.backward(weights)
    arrays = [t._array for t in (x.grad, y.grad, weights)]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    x.zero_grad()
    inner = (x + 0.0).retain_grad()
    (inner * weights).sum().backward()
    assert not np.shares_memory(x.grad._array, inner.grad._array)


def test_a_tensor_on_a_frozen_array_can_be_written():
    array = np.ones(3)
    x = Tensor(array, requires_grad=True)
    loss = (x * x).sum()
    y, z = Tensor(array), leaf([0.0] * 3)
    z.data = x.data
    assert y._array.flags.writeable and z._array.flags.writeable
    assert not array.flags.writeable and not x.data.flags.writeable
    y.copy_(2.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()
    np.testing.assert_array_equal(z.detach().numpy(), [2, 2, 2])


@pytest.mark.parametrize("first", [0, 1])
def test_overlapping_arrays_thaw_in_any_order(first):
    array = np.ones(4)
    part = array[1:]
    leaves = [Tensor(a, requires_grad=True) for a in (array, part)]
    losses = [(t * t).sum() for t in leaves]
    losses[first].backward()
    assert [a.flags.writeable for a in (array, part)] == [first == 0, first == 1]
    losses[1 - first].backward()
    assert array.flags.writeable and part.flags.writeable


# -- hooks on complete gradients -------------------------------------------------------------------


def hooked(values):
    """A parameter and the list of what its hook has seen: copies of the gradient."""
    parameter, seen = Parameter(np.array(values)), []
    parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.numpy().copy()))
    return parameter, seen


def test_a_hook_sees_the_sum_of_all_uses_once():
    w, seen = hooked([2.0, 3.0])
    (w * w + w * 3.0 + w).sum().backward()
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], [8, 10])
    (w * 1.0).sum().backward()  # what was there before counts, too
    np.testing.assert_array_equal(seen[1], [9, 11])


def test_hooks_run_while_backward_goes_on():
    order = []
    first, last = Parameter(np.ones(2)), Parameter(np.ones(2))
    for name, parameter in (("first", first), ("last", last)):
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: order.append(name))

    class Between(Function):
        def forward(self, x):
            return x + 0

        def backward(self, grad):
            order.append("between")
            return grad

    (Between()(first * 2.0) * last).sum().backward()
    assert order == ["last", "between", "first"]


def test_a_hook_waits_for_uses_that_give_nothing_and_not_for_ones_out_of_reach():
    class Nothing(Function):
        def forward(self, x):
            return x + 0

        def backward(self, grad):
            return None

    w, seen = hooked([2.0])
    Nothing()(w).sum().backward()
    assert seen == [] and w.grad is None
    (Nothing()(w) + w * 5.0).sum().backward()
    assert len(seen) == 1 and seen[0] == 5
    unused = w * 7.0
    (w * 1.0).sum().backward()
    assert len(seen) == 2 and unused.requires_grad


def test_hooks_of_a_parameter_that_is_itself_the_output():
    w, seen = hooked(3.0)
    w.backward()
    assert seen == [1]


def test_grad_calls_no_hook_and_a_removed_one_is_silent():
    w, seen = hooked([2.0])
    grad((w * w).sum(), w)
    assert seen == []
    with w.register_post_accumulate_grad_hook(lambda p: seen.append("second")):
        (w * w).sum().backward()
    assert len(seen) == 2 and seen[1] == "second"
    (w * w).sum().backward()
    assert len(seen) == 3
    copy = copying.deepcopy(w)
    (copy * copy).sum().backward()  # a copy starts without hooks
    assert len(seen) == 3


def test_a_hook_may_replace_the_gradient():
    w = Parameter(np.array([2.0]))

    def halve(p):
        p.grad = p.grad * 0.5

    w.register_post_accumulate_grad_hook(halve)
    (w * 8.0).sum().backward()
    assert w.grad.item() == 4


def test_gradients_on_reused_buffers_are_neither_copied_nor_shared(monkeypatch):
    """Large results lie on buffers that are used again: whole ones belong to who gets them."""
    a, b = (
        Tensor(np.random.default_rng(i).random((200, 300)), requires_grad=True) for i in (0, 1)
    )
    made = []
    backward = ReLU.backward

    def spy(node, grad):
        made.append(backward(node, grad))
        return made[-1]

    monkeypatch.setattr(ReLU, "backward", spy)
    ops.relu(a + b).sum().backward()
    assert made[0]._array.base is not None  # on such a buffer
    grads = a.grad._array, b.grad._array
    assert not np.shares_memory(*grads)
    assert any(np.shares_memory(grad, made[0]._array) for grad in grads)


def test_a_gradient_that_is_a_part_of_another_is_copied():
    whole = Tensor(np.random.default_rng(0).random((2, 100, 300)), requires_grad=True)
    a, b = (Tensor(np.ones((100, 300)), requires_grad=True) for _ in range(2))
    (ops.stack([a, b]) * whole).sum().backward()
    assert not np.shares_memory(a.grad._array, b.grad._array)
    np.testing.assert_array_equal(b.grad._array, whole._array[1])


def test_no_grad_of_a_function_that_two_threads_run():
    entered, left, states = Event(), Event(), []

    @no_grad()
    def run(inside):
        inside()

    def pause():
        entered.set()
        left.wait(60)

    def run_without_grad():
        with no_grad():
            run(pause)
            states.append(is_grad_enabled())

    def start():
        thread.start()
        entered.wait(60)

    thread = Thread(target=run_without_grad)
    run(start)
    states.append(is_grad_enabled())
    left.set()
    thread.join()
    assert states == [True, False]

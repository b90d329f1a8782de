"""The one source of randomness: weights, shuffles and dropout all follow `manual_seed`.

Host-side draws (initialisers) come from one NumPy generator. Dropout draws nothing: its mask is a
function of (seed, step, element index), so a step number is all that has to be remembered to
replay it, on any backend and with any number of threads.
"""

import numpy as np

_DEFAULT_SEED = 0
_STREAM_STRIDE = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: seeds near each other do not meet


_stream = 0  # not part of the state: it belongs to the process


class _State:
    def __init__(self, seed: int):
        self.seed = seed
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.dropout_step = 0


_state = _State(_DEFAULT_SEED)


def manual_seed(seed: int) -> None:
    """Restart every random stream from `seed`, an integer in [0, 2**64)."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    global _state
    _state = _State(int(seed))


def generator() -> np.random.Generator:
    """The generator that initialisers draw from."""
    return _state.generator


def set_stream(number: int) -> None:
    """Let this process draw dropout masks of its own: processes of one seed differ by `number`."""
    global _stream
    _stream = number


def next_dropout_step(count: int = 1) -> tuple[int, int]:
    """Return (seed, step) of the next dropout mask, and take it and those behind it: `count`."""
    step = _state.dropout_step
    _state.dropout_step += count
    return (_state.seed + _stream * _STREAM_STRIDE) % 2**64, step


def get_state() -> dict:
    """The whole random state as plain integers and strings, fit for JSON."""
    return {
        "seed": _state.seed,
        "dropout_step": _state.dropout_step,
        "generator": _state.generator.bit_generator.state,
    }


def set_state(state: dict) -> None:
    """Restore what `get_state` returned. Raises ValueError where `state` is something else."""
    try:
        restored = _State(state["seed"])
        restored.dropout_step = state["dropout_step"]
        restored.generator.bit_generator.state = state["generator"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state must come from minidl.random.get_state(): {error}") from error
    global _state
    _state = restored

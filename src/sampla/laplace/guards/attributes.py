"""Tensors that a network keeps in attributes of its modules while it runs, put back to what they were.

Old spectral and weight normalisation, pruning, caches and recorded activations do that (``self.last = x``). What they
keep of a product is a tensor of a torch.func transform that has ended, or holds torch's graph of it: copy.deepcopy and
torch.save of the network then fail. Numbers, text and the like (counters) stay as the network has left them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

from torch import Tensor, nn

_DEPTH = 4
"""How deep containers in an attribute are looked into."""
_MOST = 10_000
"""Entries of a container; larger ones are data, and no network's."""
_INTERNAL = frozenset(vars(nn.Module()))
_NOTHING = object()


def attributes_of(module: nn.Module) -> Callable[[], None]:
    """What puts back every tensor that the module's attributes, and containers in them, hold now, and takes off others.

    Args:
        module: any but a ScriptModule; its parameters, buffers, modules and hooks are not looked at.
    """
    own = vars(module)
    outside = {name: value for name, value in own.items() if name not in _INTERNAL}
    inside = [_contents(each) for each in _containers(outside.values())]

    def back() -> None:
        _restore(own, outside, [name for name in own if name not in _INTERNAL])
        for restore in inside:
            restore()

    return back


def _contents(held: Any) -> Callable[[], None]:
    """What puts back the entries of a container."""
    if isinstance(held, tuple):
        return lambda: None
    if not isinstance(held, (list, deque)):
        mapping = held if isinstance(held, dict) else vars(held)
        before = dict(mapping)
        return lambda: _restore(mapping, before, list(mapping))
    entries = list(held)

    def sequence_back() -> None:
        same = len(held) == len(entries) and all(a is b for a, b in zip(held, entries, strict=True))
        if not same and any(map(_has_tensor, (*held, *entries))):
            held.clear()
            held.extend(entries)

    return sequence_back


def _restore(mapping: MutableMapping[Any, Any], before: dict[Any, Any], names: list[Any]) -> None:
    for name in dict.fromkeys([*before, *names]):
        old, new = before.get(name, _NOTHING), mapping.get(name, _NOTHING)
        if old is new or not (_has_tensor(old) or _has_tensor(new)):
            continue
        if old is _NOTHING:
            del mapping[name]
        else:
            mapping[name] = old


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or any(
        isinstance(entry, Tensor) for each in _containers([value]) for entry in _entries(each)
    )


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    """Containers among values, and those inside them, each once."""
    seen: set[int] = set()
    level = list(values)
    for _ in range(_DEPTH):
        level = [each for each in level if _is_container(each) and id(each) not in seen]
        seen.update(map(id, level))
        yield from level
        level = [entry for each in level for entry in _entries(each)]


def _is_container(value: Any) -> bool:
    if isinstance(value, (list, tuple, deque, dict)):
        return len(value) <= _MOST
    kind = type(value)
    return bool(kind.__dictoffset__) and not (isinstance(value, (type, Tensor, nn.Module)) or callable(value))


def _entries(container: Any) -> Iterable[Any]:
    if isinstance(container, (list, tuple, deque)):
        return container
    return (container if isinstance(container, dict) else vars(container)).values()

"""Ctrl-C at any moment: what the process and the network are like afterwards.

SIGINT comes either at a line of Python, whosever it is (sampla's, torch's, tqdm's), or from another process after some
time. What was interrupted is then compared with what was there before.
"""

import copy
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm
from tqdm import tqdm

import sampla
from helpers import assert_unchanged, laplace, snapshot
from sampla.core import allocator, checkpoint, checks
from sampla.features import NETWORK_LOCK
from sampla.laplace.guards import untouched

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
BATCHES = [(X[:8], Y[:8]), (X[8:], Y[8:])]


class Recording(nn.Module):
    """A layer that keeps what it computes, in three ways."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.kept, self.calls = inner, {"outputs": []}, 0

    def forward(self, x: Tensor) -> Tensor:
        self.last: Tensor = self.inner(x)
        self.kept["outputs"].append(self.last)
        self.calls += 1
        return self.last


def network() -> nn.Module:
    """Old spectral normalisation, pruning, recorded activations, hooks, gradients and frozen weights."""
    torch.manual_seed(1)
    pruned = nn.Linear(5, 5)
    prune.l1_unstructured(pruned, "weight", 5)  # type: ignore[no-untyped-call]
    model = nn.Sequential(
        spectral_norm(nn.Linear(4, 5)), Recording(nn.Tanh()), pruned, nn.LayerNorm(5), nn.Linear(5, 3)
    )
    torch.nn.functional.cross_entropy(model(X), Y).backward()
    model.eval()
    with torch.no_grad():
        model(X)
    model[1].kept["outputs"].clear()
    model[4].bias.requires_grad_(False)
    model[4].register_full_backward_hook(lambda *_: None)
    return model


def process_state() -> dict[str, Any]:
    """Everything of the process that a fit sets for a while, or that torch does for it."""
    cuda, functorch = torch.backends.cuda, torch._C._functorch
    free: list[bool] = []

    def tried() -> None:
        locks = [NETWORK_LOCK, *(lock for lock in tqdm.get_lock().locks if isinstance(lock, type(threading.RLock())))]
        taken = [lock.acquire(blocking=False) for lock in locks]
        free.append(all(taken))
        for lock, got in zip(locks, taken, strict=True):
            if got:
                lock.release()

    thread = threading.Thread(target=tried)
    thread.start()
    thread.join()
    shared = getattr(tqdm.get_lock(), "mp_lock", None)
    semaphore = None if shared is None else shared._semlock
    return {
        "forward-mode level": torch.autograd.forward_ad._current_level,
        "functorch's stack": functorch.peek_interpreter_stack() is not None,
        "functorch's permissions": (
            functorch.get_single_level_autograd_function_allowed(),
            functorch.get_inplace_requires_grad_allowed(),
        ),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "hooks of saved tensors": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "forward gradients": torch._C._is_fwd_grad_enabled(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "attention kernels": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "cudnn": torch.backends.cudnn.enabled,
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "random state": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
        "functions": (torch.nn.functional.linear, torch.nn.functional.embedding),
        "handler of SIGINT": signal.getsignal(signal.SIGINT),
        "warning filters": list(warnings.filters),
        "bars": len(getattr(tqdm, "_instances", ())),
        "tqdm's lock between processes": semaphore and (semaphore._is_zero(), semaphore._is_mine()),
        "locks free": free,
        "kept memory": allocator._depth,
        "complaints": checks._complaints.get(),
        "networks in use": len(sys.modules[untouched.__module__]._users),
    }  # fmt: skip


def user_goes_on(model: nn.Module) -> None:
    """What a user does next: own derivatives of both kinds, copies, files."""
    x = X.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(x), Y).backward()
    primal, tangent = torch.func.jvp(torch.sin, (X,), (torch.ones_like(X),))
    assert torch.allclose(tangent, X.cos())
    assert torch.equal(primal, X.sin())
    assert torch.allclose(torch.func.vmap(torch.func.grad(lambda v: v.square().sum()))(X), 2 * X)


def copied(model: nn.Module) -> None:
    plain = copy.deepcopy(model)
    plain[4]._backward_hooks.clear()  # a lambda, which no file can hold
    plain[0]._forward_pre_hooks.clear()
    torch.save(plain, io.BytesIO())


class Action:
    """One thing that may be interrupted, with what must be there afterwards.

    Args:
        name: "fit", "fit with a checkpoint", "fit, block-cg", "predict", "save", "load" or "plan".
        folder: for its files.
    """

    NAMES = ("fit", "fit, block-cg", "fit with a checkpoint", "predict", "save", "load", "plan")

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.model = network()
        self.la = laplace(self.model, prior="isotropic").fit(BATCHES)
        self.file = folder / "posterior.safetensors"
        self.la.save(self.file)
        self.expected = self.la.predict(X).std
        self.saved = checkpoint.load(self.file)[0]["samples"]

    def run(self) -> None:
        """What is interrupted."""
        if self.name == "predict":
            self.la.predict(X)
        elif self.name == "save":
            self.la.save(self.file)
        elif self.name == "load":
            sampla.LinearisedLaplace.load(self.file, self.model)
        elif self.name == "plan":
            self.la.plan(BATCHES)
        else:
            solver = "block-cg" if self.name == "fit, block-cg" else "dense"
            kept = tempfile.mkdtemp(dir=self.folder) if "checkpoint" in self.name else None
            laplace(self.model, prior="isotropic", solver=solver).fit(BATCHES, checkpoint=kept)

    def after(self, before: dict[str, Any], network_before: dict[str, Any], kept: dict[str, Any]) -> list[str]:
        """What is not as it was, in words."""
        now = process_state()
        wrong = [name for name in before if now[name] != before[name]]
        checks_ = {
            "the network": lambda: assert_unchanged(self.model, network_before),
            "its attributes": lambda: _same(kept, held(self.model)),
            "deepcopy or torch.save": lambda: copied(self.model),
            "the user's own derivatives": lambda: user_goes_on(copy.deepcopy(self.model)),
            "the file": lambda: _same(True, torch.equal(checkpoint.load(self.file)[0]["samples"], self.saved)),
            "no partial files": lambda: _same([], list(self.folder.rglob("*.partial"))),
            "the earlier posterior": lambda: _same(True, torch.equal(self.la.predict(X).std, self.expected)),
        }
        for name, check in checks_.items():
            try:
                check()
            except Exception as error:
                wrong.append(f"{name} ({type(error).__name__}: {str(error)[:80]})")
        return wrong


def held(model: nn.Module) -> dict[str, Any]:
    """Tensors in attributes of modules, by identity."""
    return {
        "last": id(model[1].last),
        "outputs": list(map(id, model[1].kept["outputs"])),
        "normalised": id(model[0].weight),
        "pruned": id(model[2].weight),
    }


def _same(expected: Any, found: Any) -> None:
    assert found == expected, "differs"


def moments_of(action: Action, choose: random.Random) -> list[int]:
    """For each line of source that runs, one of the times at which it does, in lines run so far.

    Lines that run once are as likely as those of loops: what sets the process up and puts it back runs once.
    """
    count, times, found = 0, Counter[tuple[str, int]](), dict[tuple[str, int], int]()

    def trace(frame: Any, event: str, arg: Any) -> Any:  # noqa: ARG001
        nonlocal count
        if event == "line":
            count += 1
            place = frame.f_code.co_filename, frame.f_lineno
            times[place] += 1
            if choose.random() * times[place] < 1:
                found[place] = count
        return trace

    _traced(trace, action.run)
    return list(found.values())


def interrupted_at(action: Action, line: int) -> tuple[bool, list[str]]:
    """SIGINT at so many lines.

    Returns:
        Whether the action ended by it, and what is not as it was.
    """
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:  # noqa: ARG001
        nonlocal count
        count += event == "line"
        if count == line and event == "line":
            signal.raise_signal(signal.SIGINT)
        return trace

    return _judged(action, lambda: _traced(trace, action.run))


def _judged(action: Action, run: Callable[[], None]) -> tuple[bool, list[str]]:
    before, network_before, kept = process_state(), snapshot(action.model), held(action.model)
    stopped = False
    try:
        run()
        time.sleep(0.001)  # for what comes at the very end
    except KeyboardInterrupt:
        stopped = True
    return stopped, action.after(before, network_before, kept)


def _traced(trace: Callable[..., Any], run: Callable[[], None]) -> None:
    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(earlier)


_SENDER = """
import os, signal, sys, time
for line in sys.stdin:
    number, seconds = line.split()
    time.sleep(float(seconds))
    os.kill(int(sys.argv[1]), signal.SIGINT)
    print(number, flush=True)
"""


class Sender:
    """Another process that sends SIGINT to this one when asked to."""

    def __enter__(self) -> "Sender":
        command, self.number = [sys.executable, "-c", _SENDER, str(os.getpid())], 0
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def interrupted_after(self, action: Action, seconds: float) -> tuple[bool, list[str]]:
        """As ``interrupted_at``, from outside after a time."""

        def run() -> None:
            assert self.process.stdin is not None
            self.number += 1
            self.process.stdin.write(f"{self.number} {seconds}\n")
            self.process.stdin.flush()
            try:
                action.run()
            finally:
                self._wait()

        return _judged(action, run)

    def _wait(self) -> None:
        """Until the signal has come, if it has not yet."""
        assert self.process.stdout is not None
        try:
            while self.process.stdout.readline().strip() != str(self.number):  # a line may have been cut by a signal
                pass
        except KeyboardInterrupt:  # after the action's end
            pass


def trials(count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """So many interrupts, by line and from outside in turn, over all actions.

    Returns:
        How many were tried, stopped something, left all as it was, and what was not.
    """
    choose, wrong, stopped, by_action = random.Random(seed), Counter[str](), 0, Counter[str]()
    actions = [Action(name, folder / str(number)) for number, name in enumerate(Action.NAMES) if _made(folder, number)]
    seconds = [_seconds(action) for action in actions]
    lines = [moments_of(action, choose) for action in actions]
    bad = 0
    with Sender() as sender:
        for number in range(count):
            which = number % len(actions)
            action = actions[which]
            if number // len(actions) % 2:
                ended, found = sender.interrupted_after(action, choose.uniform(0, 0.9 * seconds[which]))
            else:
                ended, found = interrupted_at(action, choose.choice(lines[which]))
                found += [] if ended else ["Ctrl-C was lost"]
            stopped += ended
            bad += bool(found)
            by_action[action.name] += ended
            wrong.update(found)
            if found:
                say(f"{number}: {action.name}: {found}")
                actions[which] = Action(action.name, action.folder)
    return {"tried": count, "stopped": stopped, "right": count - bad, "wrong": bad, "faults": dict(wrong),
            "by action": dict(by_action)}  # fmt: skip


def _seconds(action: Action) -> float:
    """What it takes, once everything that it imports is there."""
    action.run()
    start = time.perf_counter()
    action.run()
    return time.perf_counter() - start


def _made(folder: Path, number: int) -> bool:
    (folder / str(number)).mkdir(parents=True, exist_ok=True)
    return True

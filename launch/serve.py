"""`laconic serve`: the engine's own server, started so that budgets hold.

It prints the exact command, waits for the server's health, says when it is ready, and leaves no
process behind.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.processes import dies_with_us, interrupt_trees
from samplers.engines import vllm
from samplers.render import ThinkingConfig
from samplers.served import command
from samplers.served.command import Command, Serving
from trainer import export
from trainer.modelfolder import ModelFolder, fetch
from trainer.preflight import check_markers

PARSERS = {"qwen3": "qwen3", "qwen3_moe": "qwen3"}
"""Of model types whose folder has no response_template; others with the usual markers: as R1."""
KV_MB = 256


def serve(args: argparse.Namespace) -> int:
    """Print the command and run it until it is interrupted.

    Raises:
        ValueError: no model, no engine, a port in use, or no thinking markers.
    """
    serving, model = serving_of(args)
    if args.engine == "sglang":
        made = command.sglang(serving, sys.executable if not args.show else "python")
    else:
        made = _vllm(serving, model, args.show)
    if not args.show:
        check_engine(args.engine)
        check_port(serving.host, serving.port)
    print(made.text, flush=True)
    if args.engine == "sglang":
        print("laconic: these flags are from SGLang's source; we never ran them", file=sys.stderr)
    return 0 if args.show else run(made, serving, args.log)


def serving_of(args: argparse.Namespace) -> tuple[Serving, ModelFolder]:
    """What the command line asks for.

    Raises:
        ValueError: no model, no chat template, no markers, or a context the model has not.
    """
    model = ModelFolder(fetch(args.model))
    markers = markers_of(args, model)
    kind = str(model.config.get("model_type"))  # refuses a folder without config.json
    if not model.chat_template:
        raise ValueError(
            f"{model.path} has no chat template, which a chat endpoint needs; add "
            "chat_template.jinja, or export the model (laconic export)"
        )
    if markers is not None:
        try:
            check_markers(model, ThinkingConfig(start=markers[0], end=markers[1]))
        except ValueError as error:
            why = str(error).partition(": set model.add_markers")[0]
            raise ValueError(
                f"{why}; name its markers (--markers), or serve it without budgets (--no-thinking)"
            ) from None
    if args.max_model_len and model.context and args.max_model_len > model.context:
        raise ValueError(
            f"--max-model-len {args.max_model_len} is above the model's context of {model.context}"
        )
    known = Path(args.model).expanduser().is_dir()
    return Serving(
        model=str(model.path),
        name=args.name or (model.path.resolve().name if known else args.model),
        host=args.host,
        port=args.port,
        markers=markers,
        parser=args.parser or parser_of(model, kind, markers),
        dtype=args.dtype or str(model.config.get("dtype") or "auto"),
        max_model_len=args.max_model_len or model.context,
        extra=tuple(args.extra),
    ), model


def markers_of(args: argparse.Namespace, model: ModelFolder) -> tuple[str, str] | None:
    """Those that an export names, or of the command line; None: no thoughts.

    What the export was trained to have at a forced end, and a server cannot write, is warned of.
    """
    start, end = args.markers
    said = export.read(model.path)
    if args.no_thinking or (said is not None and said["thinking"] is None):
        return None
    if said is None:
        return start, end
    start, end = said["thinking"]["start"], said["thinking"]["end"]
    trained = said["forced_end"] + said["after_close"]
    if trained != end:
        warnings.warn(
            f"{model.path} was trained with {trained!r} at a forced end; a server forces {end!r} "
            "alone (a phrase would also be written into answers)",
            stacklevel=2,
        )
    return start, end


def parser_of(model: ModelFolder, kind: str, markers: tuple[str, ...] | None) -> str:
    """The engine's parser of this model's responses.

    Raises:
        ValueError: none is known for these markers.
    """
    file = model.path / "tokenizer_config.json"
    said = json.loads(file.read_text()) if file.is_file() else {}
    if "thinking" in (said.get("response_template") or {}).get("fields", {}):
        return "hf"
    if markers not in (None, ("<think>", "</think>")):
        raise ValueError(
            f"{model.path}: nothing says how its responses with {markers[0]} are split; export it "
            "(laconic export writes response_template), or name the engine's --parser"
        )
    return PARSERS.get(kind, "deepseek_r1")


def _vllm(serving: Serving, model: ModelFolder, show: bool) -> Command:
    """vLLM's command for what is installed here; printed where none is: that of a GPU."""
    kind = vllm.build() or ("cuda" if show else None)
    if kind is None:
        raise ValueError(f"--engine vllm: vLLM is not installed; {vllm.INSTALL}")
    try:
        model.tokens("x")
    except ValueError:
        raise ValueError(
            f"{model.path}: its tokenizer has no token for what it does not know, and vLLM's "
            "server ends at its start, where it writes a prompt of its own; export the model "
            "(laconic export), or set unk_token in tokenizer.json to a token of the vocabulary"
        ) from None
    token = model.kv_bytes_per_token(4 if serving.dtype == "float32" else 2)
    needed = (token or 0) * ((serving.max_model_len or 0) + command.CPU_BATCH)
    return command.vllm(serving, kind, sys.executable, max(KV_MB, -(-needed // 2**20)))


def check_engine(engine: str) -> None:
    """Raise ValueError unless the engine is installed, in a version that we know."""
    if engine == "vllm":
        vllm.require(vllm.Config())
        if vllm.build() == "cuda" and shutil.which("vllm") is None:
            raise ValueError("--engine vllm: its command 'vllm' is not on the PATH; activate its "
                             "environment")  # fmt: skip
    elif importlib.util.find_spec("sglang") is None:
        raise ValueError("--engine sglang: it is not installed; --print prints the command")


def check_port(host: str, port: int) -> None:
    """Raise ValueError where somebody listens, or the address is none of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port {port} on {host}: {error.strerror}; choose another with --port"
            ) from None


# Running


def run(made: Command, serving: Serving, log: Path | None = None) -> int:
    """Start the server, tell when it is ready, and wait for its end or an interrupt.

    Returns:
        1 where the engine ended by itself.
    """
    with contextlib.ExitStack() as stack:
        kept = tempfile.TemporaryDirectory(prefix="laconic-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(kept))  # vLLM leaves sockets there
        log = log or folder / "serve.log"
        out = stack.enter_context(log.open("wb"))
        started, process = time.monotonic(), None
        try:
            with _uninterrupted():
                process = subprocess.Popen(
                    made.words,
                    env={**os.environ, **made.environment, "TMPDIR": str(folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is ours: we end all of it
                    preexec_fn=dies_with_us,
                )
            if healthy(process, serving):
                print(_ready(serving, time.monotonic() - started), flush=True)
            code = process.wait()
        finally:
            if process is not None:
                interrupt_trees([process.pid])
        print(f"laconic: {_death(code, log)}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Interrupts come when the block is done: what Python runs around a fork would swallow them."""
    came: list[int] = []
    ours = threading.current_thread() is threading.main_thread()  # else no signal is ours
    numbers = (signal.SIGINT, signal.SIGTERM) if ours else ()
    heard = {n: old for n in numbers if callable(old := signal.getsignal(n))}
    for number in heard:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, old in heard.items():
            signal.signal(number, old)
    if came:
        raise KeyboardInterrupt


def healthy(process: subprocess.Popen[bytes], serving: Serving) -> bool:
    """Wait until the server answers; False once its process has ended."""
    while process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{address(serving)}/health", timeout=5) as answer:
                if answer.status == 200:
                    return True
        time.sleep(0.25)
    return False


def address(serving: Serving) -> str:
    """Where this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serving.host, serving.host)
    return f"http://[{host}]:{serving.port}" if ":" in host else f"http://{host}:{serving.port}"


def _ready(serving: Serving, seconds: float) -> str:
    said: dict[str, Any] = {"model": serving.name}
    said["messages"] = [{"role": "user", "content": "..."}]
    if serving.markers is not None:
        room = serving.max_model_len or 4096
        budget = min(512, room // 4)
        said |= {"thinking_token_budget": budget, "max_tokens": budget + 1 + min(1024, room // 4)}
    return (
        f"ready after {seconds:.0f} s: {address(serving)}/v1 serves '{serving.name}'; Ctrl-C ends "
        f"it\ncurl {address(serving)}/v1/chat/completions -H 'Content-Type: application/json' -d "
        f"'{json.dumps(said)}'"
    )


def _death(code: int, log: Path) -> str:
    """One line: how the engine ended, and what it said last that looks like a reason."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    reasons = [line for line in lines[-200:] if "Error" in line or "error:" in line]
    last = reasons[-1:] or lines[-1:] or ["nothing"]
    return f"the engine ended ({how}) and said last: {last[0][:400]}; --log FILE keeps all of it"

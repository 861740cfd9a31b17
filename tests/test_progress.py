"""A bar where someone watches, nothing where nobody does."""

import os
import pty
import subprocess
import sys
import termios

from jupyter_client.manager import start_new_kernel

TRAIN = (
    "from ncutils.training import Run, train; train(Run(epochs=3, width=2, measure='ends')); print('done')"
)


def test_terminal_shows_a_bar():
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", TRAIN], stdout=terminal, stderr=terminal)
    process.wait(timeout=300)
    os.close(terminal)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "SGD digits" in shown and "epoch/s" in shown and "done" in shown


def test_pipe_shows_none():
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n" and done.stderr == ""


def executed(code, live):
    """Messages that a front end gets; a live one is ready to answer input()."""
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        messages = []
        reply = client.execute_interactive(code, allow_stdin=live, output_hook=messages.append, timeout=300)
        assert reply["content"]["status"] == "ok"
        return messages
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_live_notebook_shows_a_bar():
    assert [m for m in executed(TRAIN, live=True) if m["msg_type"] in ("display_data", "comm_open")]


def test_executed_notebook_keeps_nothing():
    messages = executed(TRAIN, live=False)
    left = [m for m in messages if m["msg_type"] in ("display_data", "stream", "comm_open")]
    assert [m["content"].get("text") for m in left] == ["done\n"]

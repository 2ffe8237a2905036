"""Start a vLLM server, then JupyterLab at the first lesson; stop the server when JupyterLab ends.

python -m helpers.lab [--open no]          what `make lab` runs
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from helpers import environment
from helpers.keeper import SET_PDEATHSIG, prctl
from helpers.server import ServerError, start

ROOT = Path(__file__).parent.parent
#: JupyterLab's settings where the user has none: no question about news, no look-up of updates, work saved every half minute.
SETTINGS = Path(__file__).parent / "static/jupyter"
FIRST_LESSON = "notebooks/00_start_here.ipynb"


def jupyterlab(open_browser: bool) -> subprocess.Popen[bytes]:
    """Start JupyterLab at the first lesson and return at once."""
    command = [sys.executable, "-m", "jupyterlab", "--notebook-dir", str(ROOT)]
    command += [f"--LabApp.default_url=/lab/tree/{FIRST_LESSON}"]
    command += [] if open_browser else ["--no-browser"]
    command += ["--allow-root"] if Path.home() == Path("/root") else []
    paths = filter(None, [str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH")])
    return subprocess.Popen(  # a session of its own: Ctrl-C reaches us alone, and we decide the order
        command, start_new_session=True, preexec_fn=lambda: prctl(SET_PDEATHSIG, signal.SIGTERM),
        env=os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(paths)},
    )  # fmt: skip


def main() -> int:
    """Runs the command until JupyterLab ends or Ctrl-C. Returns JupyterLab's status, 2 when no server came up."""
    parser = argparse.ArgumentParser(description="A vLLM server and JupyterLab, until Ctrl-C.")
    parser.add_argument("--open", choices=["yes", "no"], default="yes", help="open the browser")
    options = parser.parse_args()
    for stop_signal in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop_signal, lambda *_: sys.exit(0))
    lab = None
    try:
        print("Starting a vLLM server with the small Llama: half a minute.")
        with start() as server:
            print(
                f"{server.connection.model} answers at {server.connection.base_url}. Opening JupyterLab; Ctrl-C ends both."
            )
            lab = jupyterlab(options.open == "yes")
            return lab.wait()
    except ServerError as error:
        print(error, file=sys.stderr)
        environment.show()
        return 2
    except KeyboardInterrupt:
        return 0
    finally:
        if lab and lab.poll() is None:
            lab.terminate()  # JupyterLab ends its kernels
            lab.wait(30)
        print("JupyterLab and the server have ended.")


if __name__ == "__main__":
    sys.exit(main())

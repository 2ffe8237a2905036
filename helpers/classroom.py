"""What an instructor does for a class at work: its folder, its keys, and what is left at the end.

    python -m helpers.classroom open /shared/workshop/class --group workshop    make the folder's drop boxes, once
    SERVE_CLASS=/shared/workshop/class sbatch slurm/llama-3.1-8b.sbatch         a server that all of them find
    python -m helpers.classroom keys                                            who has a key
    python -m helpers.classroom hand-out 20 --to keys                           keys for people without an account here
    python -m helpers.classroom block u1234                                     shut somebody out, within seconds
    python -m helpers.classroom export                                          progress as CSV and JSON
    python -m helpers.classroom close                                           remove keys and progress

All but the first take the class's folder from WORKSHOP_CLASS, or from --folder. The dashboard is labs/instructor.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers import class_folder, class_keys, connections
from helpers.class_export import export
from helpers.class_progress import Reader
from helpers.errors import WorkshopError


def open_folder(options: argparse.Namespace) -> None:
    """Make or mend the class's folder, and say how to serve the class. Raises ClassFolderError."""
    shared = options.shared.absolute()
    group = class_folder.prepare(shared, group=options.group, everybody=options.everybody)
    whom = f"the group {group}" if group else "every account of this machine"
    print(f"{shared} is open to {whom}. Serve the class: SERVE_CLASS={shared} sbatch slurm/llama-3.1-8b.sbatch")
    if connections.class_folder() != shared:
        print(f"Outside Open OnDemand participants set WORKSHOP_CLASS={shared}")


def list_keys(options: argparse.Namespace) -> None:
    """Print who has a key, since when, and whether it was taken back. Raises ClassKeyError."""
    found = class_keys.registered(folder_of(options))
    for key in found:
        print(f"{key.name:<16} {key.whose:<20} {key.since:%Y-%m-%d %H:%M}{'  taken back' if key.blocked else ''}")
    print(f"Keys: {len(found)}" if found else "Nobody has a key yet: a participant gets one by connecting.")


def hand_out(options: argparse.Namespace) -> None:
    """Make keys for these names, or for so many guests. Raises ClassKeyError."""
    names = options.names
    if len(names) == 1 and names[0].isdigit():
        names = [f"guest-{number:02d}" for number in range(1, int(names[0]) + 1)]
    made = class_keys.hand_out(folder_of(options), names, options.to)
    print(f"{options.to}: {', '.join(path.name for path in made)}; only you can read them. Give each to one person,")
    print("who sets VLLM_API_KEY to it, and VLLM_BASE_URL to the server's address.")


def block(options: argparse.Namespace) -> None:
    """Take a key back. Raises ClassKeyError."""
    class_keys.block(folder_of(options), options.name)
    print(f"{options.name} is shut out within seconds. Let in again: python -m helpers.classroom allow {options.name}")


def allow(options: argparse.Namespace) -> None:
    """Let somebody in again whose key was taken back. Raises ClassKeyError."""
    class_keys.allow(folder_of(options), options.name)
    print(f"{options.name} may register a key again, by connecting; one that was handed out has to be made anew.")


def export_progress(options: argparse.Namespace) -> None:
    """Write the class's progress as CSV and JSON. Raises ClassProgressError."""
    reader = Reader(folder_of(options) / "progress")
    participants = reader.read()
    table, everything = export(participants, pd.DataFrame(), options.to.absolute())
    print(f"{len(participants)} participants: {table} and {everything}")
    if reader.unreadable:
        print(f"Left out, for they are no progress files: {', '.join(reader.unreadable)}")


def close(options: argparse.Namespace) -> None:
    """Remove keys and progress from the class's folder. Raises ClassFolderError."""
    removed = class_folder.clear(folder_of(options))
    print(f"{removed} files of keys and progress are removed. Participants keep their own progress at home.")


def folder_of(options: argparse.Namespace) -> Path:
    """The class's folder that was named, or found. Raises ClassFolderError."""
    shared = options.folder or connections.class_folder()
    if shared is None:
        raise class_folder.ClassFolderError("Which class? Name its folder with --folder, or set WORKSHOP_CLASS.")
    return shared.absolute()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, or 2 with one sentence on what is in the way."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m helpers.classroom", description="A class at work, for its instructor.")
    parser.add_argument("--folder", type=Path, help="the class's folder (default: WORKSHOP_CLASS)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.set_defaults(run=run)
        return added

    opened = command("open", open_folder, "make or mend a class's folder")
    opened.add_argument("shared", type=Path, metavar="FOLDER", help="on storage that all nodes see")
    opened.add_argument("--group", default="", help="the class's group (default: the folder's, if only that may enter)")
    opened.add_argument("--everybody", action="store_true", help="let in every account of this machine")
    command("keys", list_keys, "list who has a key")
    handed = command("hand-out", hand_out, "make keys for people without an account here")
    handed.add_argument("names", nargs="+", metavar="NAME", help="names, or one number: so many guests")
    handed.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the keys go, a file each")
    for name, run, what in [("block", block, "take a key back"), ("allow", allow, "let somebody in again")]:
        command(name, run, what).add_argument("name", help="as `keys` lists it")
    exported = command("export", export_progress, "write the class's progress as CSV and JSON")
    exported.add_argument("--to", type=Path, default=Path(), metavar="FOLDER")
    command("close", close, "remove all keys and all progress from the class's folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())

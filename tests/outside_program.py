"""An external program, by the standard library only: reads a job and writes label maps.

Its arguments: `truth FOLDER` copies the PNGs of a folder, `npy N` writes the class N as .npy, others fail; then the job."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path


def npy(path, width, height, value):
    """An array (height, width) uint8 in NumPy's format, version 1.0."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({height}, {width}), }}"
    header = header.ljust((len(header) // 64 + 1) * 64 - 11) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes([value]) * (width * height)
    Path(path).with_suffix(".npy").write_bytes(content)


def main(what, argument, job):
    content = json.loads(Path(job).read_text("utf-8"))
    with open(Path(content["output"]).parent / "calls.txt", "a") as calls:
        print(*(image["id"] for image in content["images"]), file=calls)
    print(f"{what} in {sys.prefix}, numpy {'is' if has_numpy() else 'is not'} installed", flush=True)
    for number, image in enumerate(content["images"]):
        width, height = struct.unpack(">II", Path(image["path"]).read_bytes()[16:24])  # of a PNG
        if what == "truth":
            shutil.copyfile(Path(argument) / f"{image['id']}.png", image["map"])
        elif what == "npy":
            npy(image["map"], width, height, int(argument))
        elif what == "large":
            npy(image["map"], width + number, height, 200)
        elif what == "fails" and number:
            raise SystemExit("the network cannot be loaded")
        elif what == "fails":
            npy(image["map"], width, height, 0)
        elif what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "slow":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (Path(content["output"]).parent / "child.txt").write_text(str(child.pid))
            time.sleep(600)


def has_numpy():
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])

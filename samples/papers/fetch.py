"""Download MNIST or CIFAR-10 in the standard formats, checked by the published MD5 sums.

    python samples/papers/fetch.py --dataset mnist|cifar10 --out FOLDER [--from URL ...]

Into `--out` go the four files of MNIST (``*-ubyte.gz``, 11 MB), or the six of CIFAR-10's binary version (``*.bin``,
184 MB, unpacked from a download of 170 MB). What is there already is left alone. `--from` names other places to ask
instead of `SOURCES`, one after the other; ``file:///FOLDER/`` will do.

The sums say that a file came whole and is the one that everybody has; MD5 is no protection from one who forges.
"""

import argparse
import hashlib
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 60  # seconds without an answer


@dataclass(frozen=True)
class Source:
    """Where a dataset is, what its files are called and what their MD5 sums are.

    Attributes
    ----------
    places : tuple of str
        URLs of folders, asked one after the other.
    files : dict
        Name to MD5, of what is downloaded.
    members : tuple of str
        What is taken out of an archive, by the last part of its name; empty: the files themselves are wanted.
    """

    places: tuple[str, ...]
    files: dict[str, str]
    members: tuple[str, ...] = ()


SOURCES = {
    "mnist": Source(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "cifar10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"),
    ),
}


def md5(path: Path) -> str:
    """MD5 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(name: str, sums: str, places: Sequence[str], folder: Path) -> Path:
    """Fetch a file from the first place that has it, whole; ends with a message where none does."""
    target = folder / name
    if target.exists() and md5(target) == sums:
        return target
    part = target.with_name(name + ".part")
    failures = []
    for place in places:
        url = place.rstrip("/") + "/" + name
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except (urllib.error.URLError, OSError) as error:
            failures.append(f"{url}: {error}")
            continue
        if (found := md5(part)) == sums:
            part.replace(target)
            return target
        failures.append(f"{url}: MD5 {found}, not {sums}")
    part.unlink(missing_ok=True)
    sys.exit(f"{name} cannot be had. " + "; ".join(failures) + ". Name another place by --from.")


def unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Take `members` out of an archive, into `folder` itself, whatever folder they are in there."""
    with tarfile.open(archive) as files:
        inside = {Path(member.name).name: member for member in files if member.isfile()}
        for name in members:
            if name not in inside:
                sys.exit(f"{archive} has no {name}; it has {', '.join(sorted(inside)) or 'no files'}.")
            stream = files.extractfile(inside[name])
            assert stream is not None
            part = folder / (name + ".part")
            with stream, part.open("wb") as file:
                shutil.copyfileobj(stream, file)
            part.replace(folder / name)


def fetch(source: Source, folder: Path) -> None:
    """Bring the files of a dataset into `folder`, which is made where it is missing."""
    wanted = source.members or tuple(source.files)
    folder.mkdir(parents=True, exist_ok=True)
    if source.members and all((folder / name).exists() for name in wanted):
        return
    for name, sums in source.files.items():
        path = download(name, sums, source.places, folder)
        if source.members:
            unpack(path, source.members, folder)
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description="Download MNIST or CIFAR-10.", allow_abbrev=False)
    parser.add_argument("--dataset", choices=SOURCES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--from", dest="places", nargs="+", metavar="URL", help="ask there instead")
    arguments = parser.parse_args()
    source = SOURCES[arguments.dataset]
    if arguments.places:
        source = Source(tuple(arguments.places), source.files, source.members)
    fetch(source, arguments.out)
    names = ", ".join(source.members or source.files)
    print(f"{arguments.out}: {names}")


if __name__ == "__main__":
    main()

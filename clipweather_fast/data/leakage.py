"""Pictures that are in more than one place: twice in a split, or in training and test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from clipweather_fast.data.contents import Content
from clipweather_fast.data.pair import Pair, Problem
from clipweather_fast.data.published import TEST1_SCENES, scene_of

__all__ = ["repeated_pictures", "shared_pictures", "shared_scenes"]


def shared_scenes(pairs: Sequence[Pair]) -> Iterator[Problem]:
    """Outdoor-Rain's scenes that two splits share, and Test1's scenes in training."""
    scenes: dict[str, dict[int, Pair]] = {}
    for pair in pairs:
        if pair.split and (scene := scene_of(pair)) is not None:
            scenes.setdefault(pair.split, {}).setdefault(scene, pair)
    said: set[int] = set()
    for one, other in _splits(scenes):
        for scene in sorted(scenes[one].keys() & scenes[other].keys()):
            words = f"scene im_{scene:04d} is in {one} and in {other}: {scenes[other][scene].image}"
            yield Problem("leakage", str(scenes[one][scene].image), words)
            said.add(scene)
    for scene, pair in sorted(scenes.get("train", {}).items()):
        if scene in TEST1_SCENES and scene not in said:
            words = (
                f"scene im_{scene:04d} is in train, but im_{TEST1_SCENES[0]:04d} to "
                f"im_{TEST1_SCENES[-1]:04d} are the scenes of Test1"
            )
            yield Problem("leakage", str(pair.image), words)


def shared_pictures(pairs: Sequence[Pair], known: Mapping[Path, Content]) -> Iterator[Problem]:
    """Pictures, degraded or clear, whose pixels are in two splits."""
    places: dict[str, dict[bytes, Path]] = {}
    for pair in pairs:
        for path in (pair.image, pair.truth) if pair.split else ():
            if pixels := known[path].pixels:
                places.setdefault(str(pair.split), {}).setdefault(pixels, path)
    for one, other in _splits(places):
        shared = ((places[one][p], places[other][p]) for p in places[one].keys() & places[other])
        for here, there in sorted(shared):
            words = f"is in {one}, and the same picture is in {other}: {there}"
            yield Problem("leakage", str(here), words)


def repeated_pictures(pairs: Sequence[Pair], known: Mapping[Path, Content]) -> Iterator[Problem]:
    """Degraded pictures that are in a split twice, and those that are equal to their truth."""
    first: dict[tuple[str | None, bytes], Path] = {}
    for pair in pairs:
        pixels = known[pair.image].pixels
        if not pixels:
            continue
        if pixels == known[pair.truth].pixels:
            words = f"shows the same as its truth {pair.truth}"
            yield Problem("unchanged", str(pair.image), words, fatal=False)
        earlier = first.setdefault((pair.split, pixels), pair.image)
        if earlier != pair.image:
            words = f"shows the same as {earlier}"
            yield Problem("duplicate", str(pair.image), words, fatal=False)


def _splits(places: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    order = ("train", "val", "test")
    rank = {name: number for number, name in enumerate(order)}
    yield from combinations(sorted(places, key=lambda name: (rank.get(name, 3), name)), 2)

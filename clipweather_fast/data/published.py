"""The three published datasets: how their pictures are called, and how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clipweather_fast.data.pair import Pair, Problem
from clipweather_fast.data.weathers import OUTDOOR_RAIN, RAINDROP

__all__ = ["COUNTS", "TEST1_SCENES", "compare_counts", "dataset_of", "scene_of"]

#: Pictures by dataset and split; first what the paper and TransWeather train and test on, then
#: larger selections that are published too.
COUNTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("Snow100K", "train"): (9_001, 50_000),
    ("Outdoor-Rain", "train"): (8_250, 9_000),
    ("RainDrop", "train"): (818, 861),
    ("Snow100K", "test"): (16_801, 50_000),  # the pictures with large flakes, Snow100K-L; all
    ("Outdoor-Rain", "test"): (750,),  # Test1
    ("RainDrop", "test"): (58,),  # test_a
}
#: Outdoor-Rain's scenes that are Test1: in its own training folder they are there as well.
TEST1_SCENES = range(301, 351)
#: Each scene comes with five kinds of streaks in three hazes.
SCENE_PICTURES = 15


def scene_of(pair: Pair) -> int | None:
    """The number of an Outdoor-Rain scene, from the picture's name; None for other pictures."""
    match = OUTDOOR_RAIN.match(pair.image.stem)
    return int(match[1]) if match else None


def dataset_of(pair: Pair) -> str | None:
    """Which published dataset a picture is from, by its name and folders; None: another one."""
    if scene_of(pair) is not None:
        return "Outdoor-Rain"
    if RAINDROP.match(pair.image.stem):
        return "RainDrop"
    folders = "/".join(pair.image.parts[:-1]).lower()
    mixed = "allweather" in folders and pair.weather == "snow"
    return "Snow100K" if mixed or "snow100k" in folders else None


def compare_counts(pairs: Sequence[Pair]) -> tuple[dict[str, dict[str, int]], list[Problem]]:
    """How many pictures of the published datasets there are, and what is missing of them.

    Returns:
        Counts by dataset and split, and the problems: fewer pictures than any published selection
        has are fatal, other differences are not.
    """
    counts: dict[str, dict[str, int]] = {}
    problems: list[Problem] = []
    found = Counter((dataset_of(pair), pair.split or "") for pair in pairs)
    for (name, split), count in sorted((key, n) for key, n in found.items() if key[0]):
        counts.setdefault(str(name), {})[split or "no split"] = count
        # A folder that says nothing of a split may be any.
        wanted = [split] if split else ["train", "test"]
        known = [n for each in wanted for n in COUNTS.get((str(name), each), ())]
        if not known or count in known:
            continue
        place = f"{name} {split}".strip()
        least = min(known)
        words = f"{count:,} pictures; published are {' or '.join(f'{n:,}' for n in sorted(known))}"
        if count < least:
            words += f", at least {least - count:,} missing"
        problems.append(Problem("counts", place, words, fatal=bool(split) and count < least))
    return counts, [*problems, *_incomplete_scenes(pairs)]


def _incomplete_scenes(pairs: Sequence[Pair]) -> Iterator[Problem]:
    scenes = Counter(
        (pair.split or "", scene) for pair in pairs if (scene := scene_of(pair)) is not None
    )
    for (split, scene), count in sorted(scenes.items()):
        if count != SCENE_PICTURES:
            place = f"Outdoor-Rain {split}".strip()
            words = f"scene im_{scene:04d} has {count} pictures, published are {SCENE_PICTURES}"
            yield Problem("counts", place, words, fatal=False)

"""Rows of the report: what one measured case says, worked out of its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["OURS", "Row", "rows"]

OURS = "ours"


@dataclass(frozen=True)
class Row:
    """One case of one topic on one machine."""

    topic: str
    case: dict[str, Any]
    roofs: dict[str, float]

    @property
    def name(self) -> str:
        return str(self.case["name"])

    @property
    def label(self) -> str:
        return self.name.replace(", both", ", forward + backward")

    @property
    def ours(self) -> dict[str, Any]:
        found: dict[str, Any] = self.case["contestants"][OURS]
        return found

    def seconds(self, contestant: str) -> float:
        """Time per call: inside a CUDA graph where both sides have that time, else the median."""
        theirs = self.case["contestants"][contestant]
        if "graph_s" in theirs and "graph_s" in self.ours:
            return float(theirs["graph_s"])
        return float(theirs["median_s"])

    @property
    def opponents(self) -> list[str]:
        return [name for name in self.case["contestants"] if name != OURS]

    def ratio(self, contestant: str) -> float:
        """How many times longer than ours the contestant takes."""
        graphed = "graph_s" in self.case["contestants"][contestant] and "graph_s" in self.ours
        own = self.ours["graph_s"] if graphed else self.ours["median_s"]
        return self.seconds(contestant) / float(own)

    def best(self, kind: str) -> float | None:
        """The smallest ratio to contestants whose name begins with ``kind``; None without one."""
        ratios = [self.ratio(name) for name in self.opponents if name.startswith(kind)]
        return min(ratios) if ratios else None

    @property
    def worst_ratio(self) -> float:
        return min((self.ratio(name) for name in self.opponents), default=float("inf"))

    @property
    def own_seconds(self) -> float:
        return float(self.ours.get("graph_s", self.ours["median_s"]))

    @property
    def bandwidth(self) -> float:
        """Bytes the call must move, per second."""
        return float(self.case["bytes"]) / self.own_seconds

    @property
    def roof(self) -> tuple[str, float] | None:
        """The binding roof and the share of it that was reached; None where none is stated."""
        if not self.case["flops"]:
            return None
        least = {"copy": self.case["bytes"] / self.roofs["copy_bytes_per_s"]}
        if self.case["matrix"]:
            rate = self.roofs.get(f"matmul_{self.case['dtype']}_flops")
            if rate:
                least["matrix"] = self.case["flops"] / rate
        elif "fma_per_s" in self.roofs:
            least["fma"] = self.case["flops"] / 2 / self.roofs["fma_per_s"]
        elif self.roofs.get("instructions_per_s"):
            least["issue"] = self.case["instructions"] / self.roofs["instructions_per_s"]
        name = max(least, key=lambda key: least[key])
        return name, least[name] / self.own_seconds

    def memory_ratio(self, kind: str, what: str) -> float | None:
        """How many times ours a contestant needs of ``saved_bytes`` or ``peak_bytes``."""
        needs = [
            theirs[what]
            for name, theirs in self.case["contestants"].items()
            if name.startswith(kind) and what in theirs
        ]
        own = self.ours.get(what)
        return min(needs) / own if needs and own else None


def rows(content: dict[str, Any]) -> list[Row]:
    """The rows of one result file: losses first, the worst before; the others as measured."""
    found = [Row(content["topic"], case, content["roofs"]) for case in content["cases"]]
    return sorted(found, key=lambda row: min(row.worst_ratio, 1.0))

"""The protocols: what is meant by PSNR and SSIM, by name. docs/metrics.md has the formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PROTOCOLS", "Protocol", "protocol_named"]

#: Weights of red, green and blue in the luma of ITU-R BT.601, in thousandths, so that eight-bit
#: pictures give whole numbers.
BT601 = (299, 587, 114)


@dataclass(frozen=True)
class Protocol:
    """One way to compare a restored picture with the truth.

    Attributes:
        name: what numbers under it are called.
        title: one line for whoever reads the numbers.
        eight_bits: clamp to [0, 1] and round to 256 levels first, as a PNG file does.
        colours: what is compared: "rgb", the three channels; "luma", Y in [0, 1] times ``peak``;
            "studio", Y in [16, 235] of 255; "swapped", Y with the weights of red and blue exchanged
            and the picture's memory misread, as TransWeather's code of 2021 did.
        peak: the largest value of the samples that are compared, L in the formulas.
        window: of SSIM: "uniform" 7 × 7 with the sample covariance, or "gaussian" 11 × 11, σ 1.5.
        guessed_range: take the range of the values from their type as scikit-image did when it was
            not told: 2 for SSIM, and 2 for PSNR if the restored picture goes below 0, else 1.
        historical: reproduces known mistakes; for reading old tables only.
    """

    name: str
    title: str
    eight_bits: bool
    colours: Literal["rgb", "luma", "studio", "swapped"]
    peak: float
    window: Literal["uniform", "gaussian"]
    guessed_range: bool = False
    historical: bool = False


#: Every protocol by name. Numbers under different protocols must not be compared.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "paper",
            "8-bit pictures, full-range BT.601 Y, SSIM 7 × 7 uniform",
            eight_bits=True,
            colours="luma",
            peak=255.0,
            window="uniform",
        ),
        Protocol(
            "rgb",
            "RGB in [0, 1], SSIM 11 × 11 Gaussian",
            eight_bits=False,
            colours="rgb",
            peak=1.0,
            window="gaussian",
        ),
        Protocol(
            "y_matlab",
            "8-bit pictures, Y in 16 to 235 (MATLAB), SSIM 11 × 11 Gaussian",
            eight_bits=True,
            colours="studio",
            peak=255.0,
            window="gaussian",
        ),
        Protocol(
            "transweather_2021",
            "historical, with five known mistakes: do not report it",
            eight_bits=False,
            colours="swapped",
            peak=1.0,
            window="uniform",
            guessed_range=True,
            historical=True,
        ),
    )
}


def protocol_named(protocol: str | Protocol) -> Protocol:
    """The protocol of that name; a protocol is returned as it is.

    Raises:
        ValueError: there is none.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]

"""The pixels of a video's frames: their depth, and the way to RGB and back that loses least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from numpy.typing import NDArray

if TYPE_CHECKING:
    import av

__all__ = ["Pixels", "colours", "depth_of", "pixel_format", "rgb"]

#: (H, W, 3) of uint8 or uint16.
Pixels: TypeAlias = NDArray[Any]

#: From this height on, a video that does not say so is taken to have the colours of HD (BT.709).
HD_HEIGHT = 720


def depth_of(frame: av.VideoFrame) -> int:
    return max(component.bits for component in frame.format.components)


def rgb(frame: av.VideoFrame, deep: bool) -> Pixels:
    """(H, W, 3), uint8 or uint16."""
    name = "rgb48le" if deep else "rgb24"
    return cast(Pixels, frame.reformat(format=name, **colours(frame)).to_ndarray())


def colours(frame: av.VideoFrame, back: bool = False) -> dict[str, Any]:
    """The matrix and range that lead from the frame's YCbCr to RGB, or back."""
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    # Without the last two every trip through RGB would darken the picture by a level.
    exact = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    matrices = {
        1: Colorspace.ITU709,
        4: Colorspace.FCC,
        7: Colorspace.SMPTE240M,
        9: Colorspace.BT2020,
        10: Colorspace.BT2020,
    }
    unknown = 2
    guessed = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
    tag = int(frame.colorspace)
    matrix = guessed if tag == unknown else matrices.get(tag, Colorspace.ITU601)
    full = int(frame.color_range) == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    span = ColorRange.JPEG if full else ColorRange.MPEG
    source, target = (ColorRange.JPEG, span) if back else (span, ColorRange.JPEG)
    return {
        "src_colorspace": matrix,
        "dst_colorspace": matrix,
        "src_color_range": source,
        "dst_color_range": target,
        "interpolation": int(exact),
    }


def pixel_format(stream: Any, frame: av.VideoFrame, width: int, height: int) -> str:
    """The encoder's format nearest to the frame's: same depth, same or finer colour."""
    kind = frame.format
    sampling = "420"
    if kind.is_rgb or kind.chroma_width() == kind.width:
        sampling = "444" if len(kind.components) >= 3 else "420"
    elif kind.chroma_height() == kind.height:
        sampling = "422"
    if (width % 2 and sampling != "444") or (height % 2 and sampling == "420"):
        sampling = "444"  # halves of odd sides would cost a row or column
    depth = depth_of(frame)
    deep = (10, 12, 16)
    # The nearest that is enough, else the deepest there is.
    bits = [d for d in deep if d >= depth] + [d for d in reversed(deep) if d < depth]
    endings = [f"p{d}le" for d in bits] if depth > 8 else []
    held = {format.name for format in stream.codec.video_formats or ()}
    wanted = [f"yuv{s}{e}" for e in (*endings, "p") for s in (sampling, "444", "420")]
    return next(name for name in wanted if name in held)

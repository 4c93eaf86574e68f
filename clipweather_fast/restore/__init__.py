"""Restoring pictures, folders of pictures and videos."""

from clipweather_fast.restore.engine import PrecisionWarning, Report
from clipweather_fast.restore.images import read_picture, write_picture
from clipweather_fast.restore.picture import Picture, PictureError
from clipweather_fast.restore.restorer import Restorer

__all__ = [
    "Picture",
    "PictureError",
    "PrecisionWarning",
    "Report",
    "Restorer",
    "read_picture",
    "write_picture",
]

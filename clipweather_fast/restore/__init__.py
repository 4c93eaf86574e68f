"""Restoring pictures, folders of pictures and videos."""

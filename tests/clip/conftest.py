"""open_clip with models small enough to test."""

from __future__ import annotations

import pytest

import tiny_clip
from clipweather_fast.clip import EncoderUnavailable
from clipweather_fast.clip._packages import import_open_clip, import_timm


@pytest.fixture(scope="session", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    # As the library imports them, which mutes what they say of one another's age.
    try:
        import_timm("this test")
        import_open_clip("this test")
    except EncoderUnavailable as error:
        pytest.skip(str(error))
    tiny_clip.register(tmp_path_factory.mktemp("configurations"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would reach for the hub fails instead."""

    def unreachable(*_: object, **__: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("the hub is not reached in tests")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", unreachable)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)

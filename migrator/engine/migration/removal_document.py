"""The removal of a guest's old images as everyone is shown it."""

from __future__ import annotations

from datetime import UTC, datetime

from migrator.api.documents import SourceImagesDocument
from migrator.core.image_removal import ImageRemoval


def source_images(removal: ImageRemoval) -> SourceImagesDocument:
    """Return what everyone is shown of it."""
    return SourceImagesDocument(
        state=removal.state.value,
        paths=[image.path for image in removal.images],
        remove_after=datetime.fromtimestamp(removal.due_at, UTC),
        reason=removal.reason,
    )

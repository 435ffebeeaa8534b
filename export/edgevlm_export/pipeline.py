"""The export: seven steps in order, from a checkpoint to a verified bundle."""

from __future__ import annotations

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.emit import emit_license
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import ImageRecipe
from edgevlm_export.image_pipeline import check_image_request, export_images
from edgevlm_export.request import ExportRequest, Progress, Silent, local_path, read_options
from edgevlm_export.staging import staging
from edgevlm_export.text_pipeline import check_text_request, export_text
from edgevlm_runtime.bundle import Bundle, open_bundle

__all__ = ["ExportRequest", "Progress", "export"]

_SILENT = Silent()


def export(request: ExportRequest, progress: Progress = _SILENT) -> Bundle:
    """Write the bundle that the request asks for; on any failure nothing is left behind.

    Raises:
        InvalidOption: the family has no such precision, or can not be compiled for that chip.
        ExportError: the output exists, the disk is full, a module can not be traced, or a tool is missing.
        CheckpointError: the checkpoint can not be found or read, or does not fit the family.
        FidelityError: the bundle does not answer as the checkpoint does.
    """
    family = FAMILIES[request.family]
    check = check_text_request if family.generates_text else check_image_request
    check(request)
    with staging(request.out, force=request.force) as folder:
        progress.start("open checkpoint")
        checkpoint = open_checkpoint(local_path(request.source))
        recipe = family.read(checkpoint, read_options(request))
        emit_license(checkpoint.folder, folder)
        if isinstance(recipe, ImageRecipe):
            export_images(recipe, request, folder, progress)
        else:
            export_text(recipe, request, folder, progress)
    return open_bundle(request.out, check=False)

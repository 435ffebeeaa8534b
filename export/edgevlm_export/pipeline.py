"""The export: seven steps in order, from a checkpoint to a verified bundle."""

from __future__ import annotations

from edgevlm_export.emit import emit_license
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import PARTICULAR, Family, ImageRecipe
from edgevlm_export.image_pipeline import check_image_request, export_images
from edgevlm_export.request import ExportRequest, Progress, Silent, local_path, read_options
from edgevlm_export.staging import staging
from edgevlm_export.text_pipeline import check_text_request, export_text
from edgevlm_runtime.bundle import Bundle, open_bundle
from edgevlm_runtime.errors import InvalidOption

__all__ = ["ExportRequest", "Progress", "export"]

_SILENT = Silent()


def export(request: ExportRequest, progress: Progress = _SILENT) -> Bundle:
    """Write the bundle that the request asks for; on any failure nothing is left behind.

    Raises:
        InvalidOption: the family has no such option or precision, or can not be compiled for that chip.
        ExportError: the output exists, the disk is full, a module can not be traced, or a tool is missing.
        CheckpointError: the checkpoint can not be found or read, or does not fit the family.
        FidelityError: the bundle does not answer as the checkpoint does.
    """
    family = FAMILIES[request.family]
    check = check_text_request if family.generates_text else check_image_request
    _check_particular(request, family)
    check(request)
    with staging(request.out, force=request.force) as folder:
        progress.start("open checkpoint")
        options = read_options(request)
        checkpoint = family.open(local_path(request.source), options)
        recipe = family.read(checkpoint, options)
        emit_license(checkpoint.folder, folder)
        if isinstance(recipe, ImageRecipe):
            export_images(recipe, request, folder, progress)
        else:
            export_text(recipe, request, folder, progress)
    return open_bundle(request.out, check=False)


def _check_particular(request: ExportRequest, family: Family) -> None:
    for name in PARTICULAR:
        if getattr(request, name) is not None and name not in family.takes:
            raise InvalidOption(f"--{name.replace('_', '-')} is not for {request.name}; leave it out")
